"""What the served model's folder says of its answers.

How it writes tool calls and reasoning is found in its chat template, or set; how it is sampled
where a request leaves that open, its authors recommend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from banyan_runtime.settings import SettingsError
from banyan_text import reasoning, tools
from banyan_text.generation_defaults import GenerationDefaults
from banyan_text.reasoning import ReasoningFormat
from banyan_text.tools import ToolFormat

F = TypeVar("F")

FROM_TEMPLATE, NONE = "auto", "none"


@dataclass(frozen=True, slots=True)
class ModelFormats:
    """None: the model has no such thing."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)


NO_FORMATS: Final = ModelFormats()


def model_formats(
    template_source: str, prefix: str, tool_format: str, reasoning_format: str
) -> ModelFormats:
    """Raises SettingsError for a name that is not known, with those that are."""
    return ModelFormats(
        _chosen(f"{prefix}TOOL_FORMAT", tool_format, tools.detect(template_source), tools.FORMATS),
        _chosen(
            f"{prefix}REASONING_FORMAT",
            reasoning_format,
            reasoning.detect(template_source),
            reasoning.FORMATS,
        ),
    )


def _chosen(key: str, name: str, found: str | None, known: Mapping[str, F]) -> F | None:
    if name == FROM_TEMPLATE:
        return None if found is None else known[found]
    if name == NONE:
        return None
    if name not in known:
        names = ", ".join((FROM_TEMPLATE, NONE, *known))
        raise SettingsError(f"{key}={name}: expected one of {names}.")
    return known[name]
