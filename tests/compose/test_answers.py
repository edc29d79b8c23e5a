"""What a user of the composed mesh sees: answers, streamed or not, and remembered."""

from __future__ import annotations

import json

from tests.compose.running import ROOT, ComposeMesh, wait_until

QUESTION = (
    "The amber key opens door 4821. The silver key opens door 1937. The iron key opens door 6650. "
    "Which door does the silver key open?"
)


def test_the_file_needs_no_settings_and_the_example_names_them_all(engine: None) -> None:
    example = (ROOT / ".env.example").read_text()
    asked = json.loads(ComposeMesh("banyan-test").compose("config", "--variables", "--format=json"))
    assert {name for name, variable in asked.items() if variable.get("Required")} == set()
    assert [name for name in asked if f"{name}=" not in example] == []


def test_a_chat_is_answered_from_its_prompt(mesh: ComposeMesh) -> None:
    with mesh.client() as client:
        answers = [
            client.chat.completions.create(
                model="banyan-demo",
                messages=[{"role": "user", "content": QUESTION}],
                temperature=0,
                max_tokens=30,
            )
            for _ in range(2)
        ]
    texts = [answer.choices[0].message.content or "" for answer in answers]
    assert "1937" in texts[0]
    assert texts[0] == texts[1]
    usage = answers[1].usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) >= usage.prompt_tokens - 2 * 16


def test_a_streamed_chat_says_the_same(mesh: ComposeMesh) -> None:
    with mesh.client() as client:
        stream = client.chat.completions.create(
            model="banyan-demo",
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=30,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "1937" in "".join(pieces)
    assert len(pieces) > 3


def test_blocks_outlive_the_workers_that_computed_them(mesh: ComposeMesh) -> None:
    """New workers, whose memory is empty, find a prompt of before in the store."""
    prompt = "What the store remembers, number by number: " + " ".join(map(str, range(60)))
    options = {"max_tokens": 8, "temperature": 0}
    with mesh.client() as client:
        first = client.completions.create(model="banyan-demo", prompt=prompt, **options)  # type: ignore[call-overload]
        wait_until(lambda: num_stored(mesh) >= first.usage.prompt_tokens // 16, "blocks are stored")
        mesh.compose("restart", "prefill", "decode")
        wait_until(lambda: sum(mesh.view().values()) == 2, "both workers are back")
        again = client.completions.create(model="banyan-demo", prompt=prompt, **options)  # type: ignore[call-overload]
    assert again.choices[0].text == first.choices[0].text
    assert again.usage.prompt_tokens_details.cached_tokens >= 5 * 16


def num_stored(mesh: ComposeMesh) -> int:
    script = "import pathlib; print(sum(f.is_file() for f in pathlib.Path('/data').rglob('*')))"
    return int(mesh.run_in("kvstore", script))
