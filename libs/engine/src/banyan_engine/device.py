"""Where the engine computes: the CPU, or one CUDA device that is really there."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")


def open_device(name: str) -> torch.device:
    """Of "cpu", "cuda" or "cuda:N". Raises ValueError for another name or an absent device."""
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise ValueError(f"device: {name!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    if kind == "cpu":
        return CPU
    if torch.version.cuda is None:
        raise ValueError(f"device: {name!r}, expected 'cpu': this torch is built without CUDA")
    num_devices = torch.cuda.device_count()
    if not num_devices:
        raise ValueError(f"device: {name!r}, expected 'cpu': torch finds no CUDA device")
    index = int(number) if colon else 0
    if index >= num_devices:
        raise ValueError(f"device: {name!r}, expected 'cuda:0' to 'cuda:{num_devices - 1}'")
    return torch.device("cuda", index)


def check_on_cuda(
    numerics: str, kv_dtype: str, quantize: str | None, block_size: int, head_dim: int
) -> None:
    """Raises ValueError for what only the CPU can do."""
    if numerics == "deterministic":
        # Tiles are cut so that no shape tells of the batch, but cuBLAS promises equal bits for
        # one version, card and configuration only, and nobody has looked.
        raise ValueError("numerics: 'deterministic', expected 'fast' on a CUDA device")
    if quantize is not None:
        raise ValueError(f"quantize: {quantize!r}, expected none on a CUDA device")
    if kv_dtype == "int8":
        raise ValueError("kv_dtype: 'int8', expected a floating-point one on a CUDA device")
    if block_size % 16:
        raise ValueError(f"block_size: {block_size}, expected a multiple of 16 on a CUDA device")
    if head_dim < 16:
        raise ValueError(f"head_dim: {head_dim}, expected at least 16 on a CUDA device")
