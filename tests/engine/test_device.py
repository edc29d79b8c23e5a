"""A device other than the CPU: what is refused, how pages travel, and that no tensor stays behind.

No GPU is needed: torch's `meta` device has shapes and devices without numbers, and a dispatch mode
sees every operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from banyan_core.model_spec import kv_layout
from banyan_core.runner import StepPlan
from banyan_engine import paged_flex, tiny_families
from banyan_engine.decode_graphs import decode_forward, decode_inputs
from banyan_engine.device import check_on_cuda, open_device
from banyan_engine.flat_forward import flat_forward
from banyan_engine.lora import load_lora
from banyan_engine.model import Model
from banyan_engine.page_bytes import DevicePages, HostPages
from banyan_engine.paged_kv import PagedKv
from banyan_engine.random_lora import LORA_CONFIG, write_random_lora
from banyan_engine.random_model import write_random_model
from banyan_engine.spans import Span
from banyan_engine.spec import read_spec
from banyan_engine.torch_runner import TorchRunner
from banyan_engine.weights import load_weights

META = torch.device("meta")
FAMILIES = ["llama-0", "gemma2-1", "qwen3_moe-0"]
COPIES = {torch.ops.aten._to_copy, torch.ops.aten.to, torch.ops.aten.copy_}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails at an operation whose tensors are on two devices, other than a copy between them.

    `strict` also forbids copies and the host: what a CUDA graph holds.
    """

    def __init__(self, *, strict: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.strict = strict
        self.num_on_device = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = tree_leaves((args, dict(kwargs or {})))
        if func is torch.ops.aten.bincount.default and args[0].device == META:
            # How many rows each expert gets, which only numbers could tell: all to the first.
            return torch.tensor([args[0].numel()] + [0] * (args[2] - 1))
        result = func(*args, **(kwargs or {}))
        devices = {
            each.device.type for each in [*given, *tree_leaves(result)] if isinstance(each, Tensor)
        }
        self.num_on_device += devices == {"meta"}
        assert len(devices) < 2 or (func.overloadpacket in COPIES and not self.strict), (
            f"{func}: {devices}"
        )
        assert not self.strict or devices == {"meta"}, f"{func}: on {devices}"
        return result


def no_attention(q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, **_options: object) -> Tensor:
    """Torch's own refuses `meta`; its arguments must be on one device all the same."""
    closure = [cell.cell_contents for cell in block_mask.mask_mod.__closure__]
    tensors = [q, k, v, *tree_leaves(block_mask.as_tuple()), *closure]
    assert {each.device for each in tensors if isinstance(each, Tensor)} == {META}
    return torch.empty_like(q)


@pytest.fixture
def _no_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_flex, "flex_attention", no_attention)


def on_meta(folder: Path) -> tuple[Model, PagedKv]:
    spec = read_spec(folder)
    weights = load_weights(folder, spec, torch.bfloat16, None, META)
    return Model(spec, weights), PagedKv(kv_layout(spec, "bfloat16"), 24, 16, META)


def span(start: int, end: int, num_sampled: int = 1, adapter: Any = None) -> Span:
    ids = torch.ones(end - start, dtype=torch.int64)
    return Span(ids, start, torch.tensor([5, 9, 2, 7]), num_sampled, adapter)


@pytest.mark.usefixtures("_no_attention")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_flat_pass_stays_on_its_device(name: str, tmp_path: Path) -> None:
    model, kv = on_meta(write_random_model(tmp_path, tiny_families.config_of(name), 1))
    spans = [span(0, 20), span(3, 4), span(30, 34, 3), span(16, 40, 0), span(17, 18)]
    announced: list[int] = []
    with torch.inference_mode(), OneDevice() as seen:
        logits = flat_forward(model, kv, spans, announced.append)
    assert logits.device == META
    assert logits.shape == (6, model.spec.vocab_size)
    assert announced == [*range(model.spec.num_layers)]
    assert seen.num_on_device > 20 * model.spec.num_layers


@pytest.mark.usefixtures("_no_attention")
def test_adapters_are_on_the_device(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", tiny_families.config_of("llama-1"), 1)
    model, kv = on_meta(folder)
    adapter = write_random_lora(tmp_path / "lora", folder, LORA_CONFIG, 2)
    lora = load_lora(adapter, model.spec, torch.bfloat16, META)
    spans = [span(0, 20, adapter=lora), span(3, 4), span(30, 34, 3, lora)]
    with torch.inference_mode(), OneDevice():
        assert flat_forward(model, kv, spans, lambda _: None).device == META


@pytest.mark.usefixtures("_no_attention")
@pytest.mark.parametrize("name", ["llama-0", "gemma2-1", "gemma3-2"])
def test_what_a_graph_holds_never_meets_the_host(name: str, tmp_path: Path) -> None:
    model, kv = on_meta(write_random_model(tmp_path, tiny_families.config_of(name), 1))
    with torch.inference_mode():
        with OneDevice():
            inputs = decode_inputs(model, kv, [span(3, 4), span(16, 17), span(40, 41)])
        with OneDevice(strict=True):
            logits = decode_forward(model, kv, inputs)
    assert logits.shape == (4, model.spec.vocab_size)


def test_a_stray_tensor_is_found() -> None:
    """The check can fail."""
    x = torch.empty(3, device=META)
    with pytest.raises((AssertionError, RuntimeError)), OneDevice():
        x.index_copy_(0, torch.tensor([1]), torch.ones(1))
    with pytest.raises(AssertionError, match="cpu"), OneDevice(strict=True):
        x.add_(torch.ones(3).to(META))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_pages_through_a_buffer_are_the_same_bytes(dtype: torch.dtype) -> None:
    halves = [
        torch.randint(-99, 99, (6, 4, 2, width), dtype=torch.int8).to(dtype) for width in (8, 12)
    ]
    host, device = HostPages(halves), DevicePages(halves)
    pages = [device.read(block_id) for block_id in range(6)]
    assert pages == [host.read(block_id) for block_id in range(6)]
    device.write(4, pages[1])
    assert host.read(4) == pages[1]
    assert host.read(3) == pages[3]
    assert host.read(5) == pages[5]


@pytest.mark.parametrize("name", ["", "gpu", "cpu:0", "cuda:", "cuda:-1", "cuda:x", "meta"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"device: .*expected 'cpu', 'cuda' or 'cuda:N'"):
        open_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device_is_refused_at_the_start(model_folder: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"device: 'cuda:1', expected 'cpu': .*CUDA"):
        TorchRunner(model_folder(), num_blocks=4, device="cuda:1")


def test_an_index_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert open_device("cuda") == torch.device("cuda", 0)
    assert open_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="'cuda:2', expected 'cuda:0' to 'cuda:1'"):
        open_device("cuda:2")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"numerics": "deterministic"}, "numerics: 'deterministic'"),
        ({"quantize": "int4"}, "quantize: 'int4'"),
        ({"kv_dtype": "int8"}, "kv_dtype: 'int8'"),
        ({"block_size": 24}, "block_size: 24"),
        ({"head_dim": 8}, "head_dim: 8"),
    ],
)
def test_what_only_the_cpu_does_is_refused(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "numerics": "fast",
        "kv_dtype": "bfloat16",
        "quantize": None,
        "block_size": 16,
        "head_dim": 64,
    }
    check_on_cuda(**right)
    with pytest.raises(ValueError, match=message):
        check_on_cuda(**(right | wrong))


@needs_cuda
@pytest.mark.parametrize("name", ["llama-0", "gemma2-0", "mixtral-0"])
def test_a_cuda_device_says_what_the_cpu_says(
    name: str, tmp_path: Path, script: Callable[..., Any]
) -> None:
    """A prompt, its pages on the way to another pool, and decodes with and without graphs."""
    config = tiny_families.config_of(name) | {"head_dim": 16}
    folder = write_random_model(tmp_path, config, 1)
    options: dict[str, Any] = {"num_blocks": 24, "dtype": "float32", "kv_dtype": "float32"}
    runners = [TorchRunner(folder, device=each, **options) for each in ("cpu", "cuda")]
    given = script("a", tuple(range(3, 60)), (4, 9, 2, 7))
    found = []
    for runner in runners:
        tokens = []
        prompt = runner.run(StepPlan(0, (given.item(0, 40),), (), ()), lambda _: None)
        tokens.append(prompt.sampled[0].tokens)
        for position in range(40, 56):
            plan = StepPlan(position, (given.item(position, position + 1),), (), ())
            tokens.append(runner.run(plan, lambda _: None).sampled[0].tokens)
        found.append(tokens)
    assert found[0] == found[1]
    page = runners[1].export_page(9, 0)
    runners[1].import_page(1, 0, page)
    assert runners[1].export_page(1, 0) == page
