"""What a LoRA adapter changes, read from its `adapter_config.json` as peft writes it.

peft decides by name patterns which modules an adapter has, with which rank and scale; the same
rules are here, over the modules that the decoder has. The file has some forty fields, more with
each version, and most change the mathematics when they are set: so every field is either
understood here, known to say nothing about serving, or must be empty.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from banyan_engine.spec import ModelError, read_json

V = TypeVar("V")

CONFIG_NAME = "adapter_config.json"
ALL_LINEAR = "all-linear"

_UNDERSTOOD = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "bias",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)
_SAY_NOTHING = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "megatron_core",  # the name of a module; what would use it is megatron_config
    "peft_version",
    "qalora_group_size",  # of use_qalora
    "revision",
    "task_type",
)
_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin training that leave the base's weights alone; others subtract from them."""


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """`ranks` and `alphas` are pattern to value, the first that fits a module counts."""

    rank: int
    alpha: float
    is_rank_stabilized: bool
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...] | None
    layers_names: tuple[str, ...]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def has(self, module: str) -> bool:
        """Whether a linear module, by its full name in the model, has a delta."""
        if self.excluded and _named(self.excluded, module):
            return False
        if isinstance(self.targets, str) and self.targets != ALL_LINEAR:
            return _named(self.targets, module)
        is_named = self.targets == ALL_LINEAR or _named(self.targets, module)
        return is_named and self._has_layer(module)

    def rank_of(self, module: str) -> int:
        return _first_fit(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of the two matrices is multiplied with."""
        rank, alpha = self.rank_of(module), _first_fit(self.alphas, module, self.alpha)
        return float(alpha / (rank**0.5 if self.is_rank_stabilized else rank))

    def _has_layer(self, module: str) -> bool:
        if self.layers is None:
            return True
        names = "|".join(map(re.escape, self.layers_names)) or r"[^.]*"
        found = re.match(rf".*?\.(?:{names})\.(\d+)\.", module)
        return found is not None and int(found[1]) in self.layers


def _named(patterns: str | tuple[str, ...], module: str) -> bool:
    """A string is a pattern for the whole name, a list holds ends of names."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in patterns)


def _first_fit(patterns: Mapping[str, V], module: str, default: V) -> V:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_lora_config(folder: Path) -> LoraConfig:
    """Raises ModelError naming the field and what was expected."""
    values = read_json(folder / CONFIG_NAME)
    _refuse_unknown_mathematics(values)
    layers = values.get("layers_to_transform")
    config = LoraConfig(
        rank=_whole(values.get("r", 8), "r"),
        alpha=_number(values.get("lora_alpha", 8), "lora_alpha"),
        is_rank_stabilized=values.get("use_rslora") is True,
        targets=_patterns(values.get("target_modules"), "target_modules"),
        excluded=_patterns(values.get("exclude_modules") or [], "exclude_modules"),
        layers=None if layers is None else _indices(layers),
        layers_names=_names(values.get("layers_pattern")),
        ranks={
            pattern: _whole(value, f"rank_pattern.{pattern}")
            for pattern, value in _table(values, "rank_pattern").items()
        },
        alphas={
            pattern: _number(value, f"alpha_pattern.{pattern}")
            for pattern, value in _table(values, "alpha_pattern").items()
        },
    )
    if not config.targets:
        raise _wrong("target_modules", config.targets, "a list of names, or a pattern")
    return config


def _refuse_unknown_mathematics(values: Mapping[str, object]) -> None:
    if (kind := values.get("peft_type")) != "LORA":
        raise _wrong("peft_type", kind, "'LORA'")
    if (bias := values.get("bias", "none")) != "none":
        raise _wrong("bias", bias, "'none'")
    if (first := values.get("init_lora_weights", True)) not in _KEEPS_BASE:
        raise _wrong("init_lora_weights", first, "a way that leaves the base's weights as they are")
    for name, value in values.items():
        if value and name not in _UNDERSTOOD and name not in _SAY_NOTHING:
            raise _wrong(name, value, "no such field, or an empty one")


def _wrong(name: str, value: object, expected: str) -> ModelError:
    return ModelError(f"{CONFIG_NAME}: {name}: {value!r}, expected {expected}")


def _whole(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(name, value, "a positive integer")
    return value


def _number(value: object, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e30:
        raise _wrong(name, value, "a number")
    return float(value)


def _patterns(value: object, name: str) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value if value == ALL_LINEAR else _compiled(value, name)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise _wrong(name, value, "a list of names, or a pattern")


def _compiled(pattern: str, name: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise _wrong(name, pattern, f"a pattern ({error})") from None
    return pattern


def _table(values: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = values.get(name) or {}
    if not isinstance(value, dict):
        raise _wrong(name, value, "an object of pattern to value")
    for pattern in value:
        _compiled(pattern, name)
    return value


def _indices(value: object) -> tuple[int, ...]:
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) for each in found):
        raise _wrong("layers_to_transform", value, "an integer or a list of integers")
    return tuple(found)


def _names(value: object) -> tuple[str, ...]:
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(each, str) for each in found):
        raise _wrong("layers_pattern", value, "a name or a list of names")
    return tuple(found)
