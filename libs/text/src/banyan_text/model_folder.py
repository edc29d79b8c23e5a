"""Reading the files of a Hugging Face model folder, with errors that say what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class ModelFolderError(Exception):
    """The model folder cannot be used; one sentence that says what to do."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the folder. Raises ModelFolderError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(
            f"{path.parent} has no {path.name}: give a folder in Hugging Face layout."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} cannot be read ({error}): replace the file.") from None
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} must hold a JSON object: replace the file.")
    return value


def read_object_if_there(path: Path) -> dict[str, Any]:
    """As `read_object`; empty when the file does not exist."""
    return read_object(path) if path.exists() else {}


def require_folder(folder: Path) -> None:
    """Raises ModelFolderError unless the folder exists and has a model's configuration."""
    if not folder.is_dir():
        raise ModelFolderError(f"model folder {folder} does not exist: check the path.")
    if not (folder / "config.json").is_file():
        raise ModelFolderError(
            f"model folder {folder} has no config.json: give a folder in Hugging Face layout."
        )


def token_text(value: object) -> str | None:
    """The text of a token as tokenizer_config.json writes it: plain, or an object around it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def chat_template_source(folder: Path) -> str | None:
    """The folder's chat template, from its own file or from tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelFolderError(f"{path} cannot be read ({error}): replace the file.") from None
    source = read_object_if_there(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(source, list):
        named = {each.get("name"): each.get("template") for each in source}
        source = named.get("default")
    return source if isinstance(source, str) else None
