"""The sampling that a model's authors recommend, out of its `generation_config.json`.

It holds for a request that leaves a value open. `do_sample` is not read: a request that wants
greedy decoding says temperature 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banyan_text.model_folder import ModelFolderError, read_object_if_there


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """None where the authors say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


def read_generation_defaults(folder: Path) -> GenerationDefaults:
    """Raises ModelFolderError for a value that no request could ask for."""
    path = folder / "generation_config.json"
    values = read_object_if_there(path)
    top_k = _number(path, values, "top_k", 0, 1e9)
    if top_k is not None and top_k != int(top_k):
        raise ModelFolderError(f"{path}: top_k is {top_k}, expected a whole number.")
    return GenerationDefaults(
        temperature=_number(path, values, "temperature", 0, 2),
        top_p=_number(path, values, "top_p", 1e-9, 1),
        top_k=None if top_k is None else int(top_k),
        repetition_penalty=_number(path, values, "repetition_penalty", 1e-9, 2),
    )


def _number(
    path: Path, values: dict[str, Any], name: str, lowest: float, highest: float
) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelFolderError(f"{path}: {name} is {value!r}, expected a number.")
    if not lowest <= value <= highest:
        raise ModelFolderError(f"{path}: {name} is {value}, expected {lowest:g} to {highest:g}.")
    return float(value)
