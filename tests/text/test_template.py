"""Chat templates run in a sandbox and fail with a clear error."""

import pytest

from banyan_text.template import TEMPLATE_CHARS_MAX, ChatTemplate, TemplateError

MESSAGES = [{"role": "user", "content": "hi"}]


def test_renders_messages_and_special_tokens() -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}"
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES) == "<s>[user]hi"


def test_json_is_not_escaped_for_html() -> None:
    template = ChatTemplate("{{ messages[0].content | tojson }}", {})
    assert template.render([{"role": "user", "content": "<é&>"}]) == '"<é&>"'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].nothing.more }}", "failed"),
        ("{{ messages[0].content + 1 }}", "failed"),
        ("{{ 1 // 0 }}", "failed"),
        ("{{ ''.__class__.__mro__ }}", "failed"),
        ("{{ messages.append(1) }}", "failed"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recurses"),
        ("{% for a in range(90000) %}{{ 'x' * 1000 }}{% endfor %}", "exceeds"),
        ("{% for a in range(1000000000) %}{% endfor %}", "failed"),
    ],
)
def test_failures_are_template_errors(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatTemplate(source, {}).render(MESSAGES)


def test_a_template_is_told_of_tools_and_what_else_is_given() -> None:
    source = "{{ tools | tojson(indent=1, sort_keys=true) }}{{ add_generation_prompt }}{{ bos }}"
    template = ChatTemplate(source + "{{ thinking is defined }}", {"bos": "<s>"})
    assert template.render(MESSAGES) == "nullTrue<s>False"
    told = {"tools": [{"b": 1, "a": "é"}], "add_generation_prompt": False, "thinking": True}
    assert template.render(MESSAGES, told) == '[\n {\n  "a": "é",\n  "b": 1\n }\n]False<s>True'


def test_message_text_is_never_run() -> None:
    hostile = [{"role": "user", "content": "{{ raise_exception('run') }}"}]
    assert ChatTemplate("{{ messages[0].content }}", {}).render(hostile) == hostile[0]["content"]


@pytest.mark.parametrize("source", ["{% if %}", "x" * (TEMPLATE_CHARS_MAX + 1)])
def test_bad_source_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source, {})
