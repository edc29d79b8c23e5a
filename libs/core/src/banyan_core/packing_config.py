"""`quantization_config` of a `config.json`: how the matrices in a checkpoint's files are packed.

What is served stands here by value, and every other value of a field that changes what the bytes
mean is refused by its name: a wrong guess would be a model that talks nonsense.
"""

from __future__ import annotations

from banyan_core.config_fields import ConfigFields
from banyan_core.model_spec import ModelError, Packing

GROUP_STEP = 32
"""Input channels that share a scale come in multiples of this."""

_GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""The first one writes zero points less one."""


def parse_packing(config: ConfigFields) -> Packing | None:
    """None for a checkpoint that is not packed. Raises ModelError."""
    fields = config.inner("quantization_config")
    if not fields.values:
        return None
    method = fields.get("quant_method")
    readers = {"compressed-tensors": _compressed_tensors, "gptq": _gptq, "awq": _awq}
    read = readers.get(method) if isinstance(method, str) else None
    if read is None:
        raise fields.error("quant_method", method, f"one of {', '.join(readers)}")
    return read(fields)


def check_packing(packing: Packing | None, numerics: str, quantize: str | None) -> None:
    """Raises ModelError for what a packed checkpoint cannot be served with."""
    if packing is None:
        return
    if quantize is not None:
        raise ModelError(f"quantize: {quantize}, expected none: the checkpoint is packed already")
    if numerics == "deterministic":
        raise ModelError("numerics: deterministic, expected fast for a packed checkpoint")


def _compressed_tensors(fields: ConfigFields) -> Packing:
    _expect(fields, "format", "pack-quantized")
    for name in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        _expect_none(fields, name)
    groups = fields.inner("config_groups")
    if len(groups.values) != 1:
        raise fields.error("config_groups", sorted(groups.values), "exactly one group")
    scheme = groups.inner(next(iter(groups.values)))
    for name in ("input_activations", "output_activations"):
        _expect_none(scheme, name)
    if scheme.get("format") is not None:
        _expect(scheme, "format", "pack-quantized")
    weights = scheme.inner("weights")
    _expect(weights, "type", "int")
    _expect(weights, "num_bits", 4, 8)
    _expect(weights, "strategy", "group", "channel")
    if weights.get("actorder", False) is not False:
        _expect(weights, "actorder", "weight", "static")
    if weights.flag("dynamic", False):
        raise weights.error("dynamic", True, "false")
    bits = weights.integer("num_bits")
    if not weights.flag("symmetric", True) and bits == 8:
        raise weights.error("symmetric", False, "true with num_bits 8")
    per_channel = weights.get("strategy") == "channel"
    return Packing("compressed-tensors", bits, None if per_channel else _group_size(weights))


def _gptq(fields: ConfigFields) -> Packing:
    _expect(fields, "bits", 4)
    if fields.flag("desc_act", False):
        raise fields.error("desc_act", True, "false")
    name = "checkpoint_format" if fields.get("checkpoint_format") is not None else "format"
    if fields.get(name) is not None:
        _expect(fields, name, *_GPTQ_FORMATS)
    if fields.flag("is_marlin_format", False):
        raise fields.error("is_marlin_format", True, "false")
    if fields.get("pack_dtype") is not None:
        _expect(fields, "pack_dtype", "int32")
    for refused in ("dynamic", "rotation", "adapter"):
        _expect_none(fields, refused)
    return Packing("gptq", 4, _group_size(fields), _GPTQ_FORMATS[str(fields.get(name, "gptq"))])


def _awq(fields: ConfigFields) -> Packing:
    _expect(fields, "bits", 4)
    version = fields.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise fields.error("version", version, "gemm")
    return Packing("awq", 4, _group_size(fields))


def _group_size(fields: ConfigFields) -> int | None:
    """None for -1, which is one scale for all input channels."""
    if fields.get("group_size") == -1:
        return None
    size = fields.integer("group_size")
    if size % GROUP_STEP:
        raise fields.error("group_size", size, f"-1 or a multiple of {GROUP_STEP}")
    return size


def _expect(fields: ConfigFields, name: str, *served: object) -> None:
    value = fields.get(name)
    if isinstance(value, bool) or value not in served:
        raise fields.error(name, value, " or ".join(map(str, served)))


def _expect_none(fields: ConfigFields, name: str) -> None:
    if fields.get(name) not in (None, {}):
        raise fields.error(name, fields.get(name), "null")
