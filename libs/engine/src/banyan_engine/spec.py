"""A model folder's `config.json` and end tokens, read from disk; what they mean is core's."""

from __future__ import annotations

import json
from pathlib import Path

from banyan_core.model_config import parse_config
from banyan_core.model_spec import ModelError, ModelSpec

__all__ = ["ModelError", "ModelSpec", "read_json", "read_spec"]


def read_spec(folder: Path) -> ModelSpec:
    """The spec of a Hugging Face model folder. Raises ModelError."""
    config = read_json(folder / "config.json")
    return parse_config(config, _read_end_token_ids(folder, config))


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file of a model folder. Raises ModelError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path.name}: not found in {path.parent}, expected a file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path.name}: expected a JSON object: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name}: expected a JSON object, got {type(content).__name__}")
    return content


def _read_end_token_ids(folder: Path, config: dict[str, object]) -> tuple[int, ...]:
    """`eos_token_id` of generation_config.json, which wins, or of config.json."""
    found = config.get("eos_token_id")
    if (folder / "generation_config.json").exists():
        found = read_json(folder / "generation_config.json").get("eos_token_id", found)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise ModelError(f"eos_token_id: {found!r}, expected an integer or a list of integers")
    return tuple(ids)
