"""The compiled helper draws what numpy draws, or says that it is not sure."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from banyan_core.types import SamplingParams
from banyan_engine import helped_draw
from banyan_engine.draw import Logits, draw, largest_ids
from banyan_engine.kernels import native
from banyan_engine.kernels.build import FLAGS, LEVELS, SOURCES, cpu_level


@pytest.fixture(scope="module", params=list(LEVELS))
def at_level(
    helper: ctypes.CDLL, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """The library at each level that this CPU can run: at the lower ones just what is tested."""
    level, best = request.param, cpu_level()
    assert best is not None
    if list(LEVELS).index(level) < list(LEVELS).index(best):
        pytest.skip(f"this CPU has no {level}")
    if level == best:
        return helper
    target = tmp_path_factory.mktemp("kernels") / "sampling.so"
    options = (*FLAGS, *LEVELS[level], "-shared", "-o", str(target))
    subprocess.run(["g++", *options, str(SOURCES / "sampling.cpp")], check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`use(library)`: from now on; None is numpy."""

    def switch(library: ctypes.CDLL | None) -> None:
        monkeypatch.setattr(native, "library", lambda: library)

    yield switch


def row(num: int, scale: float, kind: str, seed: int) -> Logits:
    """`kind` says whether many are equal, as logits of bfloat16 are, or masked."""
    generator = np.random.default_rng(seed)
    logits = (generator.normal(size=num) * scale).astype(np.float32)
    if kind == "bfloat16":
        logits = (logits.view(np.uint32) & 0xFFFF0000).view(np.float32)
    if kind == "masked":
        logits[generator.random(num) < 0.5] = -np.inf
        logits[0] = 0.0
    return logits


KNOBS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.3},
    {"temperature": 1e-5},
    {"top_p": 0.9},
    {"top_p": 0.999, "temperature": 1.5},
    {"top_p": 0.2},
    {"top_p": 0.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_p": 0.95, "min_p": 0.01},
    {"top_p": 0.5, "min_p": 0.2},
    {"top_k": 50, "top_p": 0.9},
)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "masked"])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 3.0, 12.0])
def test_the_same_token_as_numpy(at_level: ctypes.CDLL, use: Any, scale: float, kind: str) -> None:
    uniforms = np.random.default_rng(1).random(5).tolist()
    for num in (1, 2, 16, 17, 513, 20_000):
        logits = row(num, scale, kind, num)
        for knobs in KNOBS:
            params = SamplingParams(**knobs)
            for uniform in (*uniforms, 0.0, 1.0 - 2.0**-53):
                use(at_level)
                found = draw(logits, logits.max(), params, uniform)
                use(None)
                assert found == draw(logits, logits.max(), params, uniform), (num, knobs, uniform)


@pytest.mark.parametrize("knobs", [{}, {"top_p": 0.9}, {"min_p": 0.05}])
def test_most_draws_of_a_likely_row_are_sure(at_level: ctypes.CDLL, use: Any, knobs: Any) -> None:
    use(at_level)
    params, num_sure = SamplingParams(**knobs), 0
    for seed in range(200):
        logits = row(32_000, 4.0, "float32", seed)
        uniform = np.random.default_rng(seed).random()
        num_sure += helped_draw.draw(logits, logits.max(), params, uniform) is not None
    assert num_sure >= 180


@pytest.mark.parametrize("knobs, uniform", [({}, 0.5), ({"top_p": 0.75}, 0.9), ({"min_p": 0.5}, 0)])
def test_a_draw_on_the_edge_is_numpys(
    at_level: ctypes.CDLL, use: Any, knobs: Any, uniform: float
) -> None:
    """Half of the mass is one token's, three quarters are two tokens', a half is a weight."""
    use(at_level)
    logits = np.log(np.array([0.5, 0.25, 0.25], np.float32))
    params = SamplingParams(**knobs)
    assert helped_draw.draw(logits, logits.max(), params, uniform) is None


def test_equal_tokens_that_end_the_head_are_taken_by_id(at_level: ctypes.CDLL, use: Any) -> None:
    """Of a hundred equal ones after a likely one, top-p takes thirty and a half: so thirty-one."""
    use(at_level)
    logits = np.log(np.array([0.005] * 50 + [0.5] + [0.005] * 50, np.float32))
    params = SamplingParams(top_p=0.6525)
    drawn = {
        helped_draw.draw(logits, logits.max(), params, uniform)
        for uniform in np.linspace(0.001, 0.999, 997)
    }
    assert drawn - {None} == {*range(31), 50}


def test_numpys_exponentials_are_as_exact_as_the_margin_takes_them_to_be() -> None:
    powers = -np.linspace(0, 80, 300_001, dtype=np.float32)
    exact = np.exp(powers.astype(np.float64))
    assert np.abs(np.exp(powers) / exact - 1).max() < 4 * 2.0**-23


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "masked"])
def test_the_largest_are_numpys(at_level: ctypes.CDLL, use: Any, kind: str) -> None:
    for num in (2, 17, 600, 40_000):
        logits = row(num, 2.0, kind, num)
        for wanted in (1, 2, 16, 50, 500, 1024):
            use(at_level)
            found = largest_ids(logits, wanted).tolist()
            use(None)
            assert found == largest_ids(logits, wanted).tolist()
