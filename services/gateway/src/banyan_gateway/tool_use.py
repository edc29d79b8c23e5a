"""What a request's tools mean: what the template is told, what the answer must be, how it is read.

`auto` tells the model of the tools and reads its answer; `required` and a named tool force the
answer to be calls, by a grammar; `none` keeps the tools from the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from banyan_core.types import Grammar, GrammarKind
from banyan_gateway.errors import invalid
from banyan_gateway.grammar_trials import TOO_COMPLEX, TOO_SLOW, GrammarTrials
from banyan_gateway.tool_schema import NamedTool, ToolBody, ToolChoice
from banyan_text.tools import Tool, ToolFormat
from banyan_text.tools.format import TokenOf

_NUM_TRIED_ALONE = 4
"""Where each may take seconds: then the first ones are looked at, and all are named together."""
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`described` is what the template gets. `grammar` is None unless calls are forced."""

    described: list[dict[str, Any]]
    format: ToolFormat
    grammar: Grammar | None
    calls_max: int | None


def tool_use(
    tools: Sequence[ToolBody] | None,
    choice: ToolChoice | None,
    parallel: bool,
    known: ToolFormat | None,
    token_of: TokenOf,
) -> ToolUse | None:
    """None when the model may not call. Raises ApiError; the grammar is not checked yet."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice", "needs tools")
        return None
    _check_names(tools)
    if choice == "none":
        return None
    if known is None:
        raise invalid(
            "tools",
            "this model's chat template knows no format of tool calls, and none is set",
            "unsupported_parameter",
        )
    forced = _forced(tools, choice)
    grammar = None
    if forced:
        several = parallel and not isinstance(choice, NamedTool)
        text = known.grammar([_tool(each) for each in forced], several, token_of)
        grammar = Grammar(GrammarKind.LARK, text)
    return ToolUse([_described(each) for each in tools], known, grammar, None if parallel else 1)


def check_tools(use: ToolUse, tools: Sequence[ToolBody], trials: GrammarTrials) -> None:
    """Raises for parameters that no call can be forced to follow; they are named if they are bad
    by themselves. Takes its time, though a bounded one."""
    if use.grammar is None:
        return
    reason = trials.refusal(use.grammar)
    if reason is None:
        return
    searched = tools[:_NUM_TRIED_ALONE] if reason in (TOO_SLOW, TOO_COMPLEX) else tools
    for index, each in enumerate(searched):
        schema = msgspec.json.encode(each.function.parameters or _ANY_OBJECT).decode()
        alone = trials.refusal(Grammar(GrammarKind.JSON_SCHEMA, schema))
        if alone is not None:
            raise invalid(f"tools[{index}].function.parameters", f"cannot be followed: {alone}")
    raise invalid("tools", f"cannot be followed together: {reason}")


def _check_names(tools: Sequence[ToolBody]) -> None:
    names: set[str] = set()
    for index, each in enumerate(tools):
        if each.function.name in names:
            raise invalid(f"tools[{index}].function.name", "another tool has this name")
        names.add(each.function.name)


def _forced(tools: Sequence[ToolBody], choice: ToolChoice | None) -> Sequence[ToolBody]:
    """The tools of which the answer must be calls; none when it is the model's choice."""
    if isinstance(choice, NamedTool):
        named = [each for each in tools if each.function.name == choice.function.name]
        if not named:
            raise invalid("tool_choice.function.name", "expected the name of one of the tools")
        return named
    return tools if choice == "required" else ()


def _tool(body: ToolBody) -> Tool:
    function = body.function
    return Tool(function.name, function.description or "", function.parameters or _ANY_OBJECT)


def _described(body: ToolBody) -> dict[str, Any]:
    """As templates expect it: all three keys, always."""
    tool = _tool(body)
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }
