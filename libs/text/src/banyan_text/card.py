"""The model card: what two processes must agree on before they share tokens or KV.

Every process reads the card from its own copy of the model folder. Weights are not read whole:
each file's header, size, head and tail are hashed, which tells models, versions and truncated
copies apart in milliseconds. It does not find a bit that flipped in the middle of a file.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

from banyan_core.echo import ECHO_LAYOUT
from banyan_core.model_config import parse_config
from banyan_core.model_spec import KvDtype, ModelError, Quantize, kv_dtype, kv_layout
from banyan_core.packing_config import check_packing
from banyan_core.types import ModelCard
from banyan_text.model_folder import (
    ModelFolderError,
    chat_template_source,
    read_object,
    read_object_if_there,
    require_folder,
    token_text,
)

_SAMPLE_BYTES = 1024 * 1024
_HEADER_BYTES_MAX = 100 * 1024 * 1024  # the bound of the safetensors format itself
_ECHO_CONTEXT_TOKENS = 131_072


def read_card(
    folder: Path,
    block_size: int,
    numerics: str,
    name: str | None = None,
    *,
    quantize: Quantize | None = None,
    kv: KvDtype | None = None,
) -> ModelCard:
    """The card of a folder in Hugging Face layout; `name` defaults to the folder's own.

    Packed weights make other KV, so `quantize` is part of the card's numerics; a folder that is
    packed is told apart by its files and `config.json`. `kv` unset follows from `numerics`.

    Raises ModelFolderError when the folder is missing, incomplete or makes no sense.
    """
    require_folder(folder)
    config = read_object(folder / "config.json")
    try:
        spec = parse_config(config)
        check_packing(spec.packing, numerics, quantize)
    except ModelError as error:
        raise ModelFolderError(f"{folder}: {error}") from None
    return ModelCard(
        name=name or folder.resolve().name,
        weights_digest=_weights_digest(folder),
        tokenizer_digest=_tokenizer_digest(folder),
        context_tokens=spec.context_tokens,
        end_token_ids=_end_token_ids(folder, config),
        block_size=block_size,
        kv_layout=kv_layout(spec, kv or kv_dtype(numerics)),
        numerics=f"{numerics}+{quantize}" if quantize else numerics,
    )


def echo_card(block_size: int, numerics: str, name: str = "echo") -> ModelCard:
    """The card of the echo runner, which has no end token."""
    return ModelCard(
        name=name,
        weights_digest=hashlib.sha256(b"echo").digest(),
        tokenizer_digest=hashlib.sha256(b"bytes").digest(),
        context_tokens=_ECHO_CONTEXT_TOKENS,
        end_token_ids=(),
        block_size=block_size,
        kv_layout=ECHO_LAYOUT,
        numerics=numerics,
    )


def _weights_digest(folder: Path) -> bytes:
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ModelFolderError(
            f"model folder {folder} has no .safetensors file: download or build the weights."
        )
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in paths:
        _add_weights(digest, path)
    return digest.digest()


def _add_weights(digest: Any, path: Path) -> None:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else num_bytes
        if not 0 < header_bytes <= min(num_bytes - 8, _HEADER_BYTES_MAX):
            raise ModelFolderError(f"{path} is not a safetensors file: download it again.")
        digest.update(b"%s|%d|" % (path.name.encode(), num_bytes))
        digest.update(file.read(header_bytes))
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(8 + header_bytes, num_bytes - _SAMPLE_BYTES))
        digest.update(file.read(_SAMPLE_BYTES))


def _tokenizer_digest(folder: Path) -> bytes:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFolderError(
            f"model folder {folder} has no tokenizer.json: copy it from where the model came from."
        )
    digest = hashlib.sha256(path.read_bytes())
    digest.update(b"|" + (chat_template_source(folder) or "").encode())
    return digest.digest()


def _end_token_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """From generation_config.json, else config.json, else the tokenizer's end token."""
    for source in (read_object_if_there(folder / "generation_config.json"), config):
        ids = source.get("eos_token_id")
        ids = ids if isinstance(ids, list) else [ids]
        if ids and all(isinstance(each, int) for each in ids):
            return tuple(ids)
    text = token_text(read_object_if_there(folder / "tokenizer_config.json").get("eos_token"))
    for token in read_object(folder / "tokenizer.json").get("added_tokens", ()):
        if text is not None and token.get("content") == text:
            return (int(token["id"]),)
    return ()
