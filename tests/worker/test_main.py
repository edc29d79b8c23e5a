"""How a worker process starts, and how it refuses to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from banyan_core.types import Role
from banyan_engine.demo import model_folder
from banyan_worker.main import run

GOOD = {
    "BANYAN_DECODE_ID": "d0",
    "BANYAN_DECODE_ADDRESS": "127.0.0.1:0",
    "BANYAN_DECODE_METRICS_ADDRESS": "127.0.0.1:0",
    "BANYAN_DECODE_RUNNER": "echo",
    "BANYAN_DIRECTORY": "static:kvstore=127.0.0.1:2",
    "BANYAN_BUS_URL": "redis://127.0.0.1:1",
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"BANYAN_DECODE_ADDRESS": None},
            "BANYAN_DECODE_ADDRESS is not set: expected HOST:PORT, port 0 to 65535.",
        ),
        (
            {"BANYAN_DECODE_RUNNER": "gpu"},
            "BANYAN_DECODE_RUNNER=gpu: expected one of torch, echo.",
        ),
        (
            {"BANYAN_DECODE_RUNNER": "torch"},
            "BANYAN_DECODE_MODEL is not set: expected the folder of a model.",
        ),
        (
            {"BANYAN_DECODE_RUNNER": "torch", "BANYAN_DECODE_MODEL": "/nowhere"},
            "BANYAN_DECODE_MODEL=/nowhere: model folder /nowhere does not exist: check the path.",
        ),
        (
            {"BANYAN_ADAPTERS": "/nowhere"},
            "BANYAN_ADAPTERS=/nowhere: expected a folder of LoRA adapters.",
        ),
        (
            {"BANYAN_ADAPTERS": "/"},
            "BANYAN_ADAPTERS=/: expected nothing, for the echo runner has no adapters.",
        ),
        (
            {"BANYAN_DECODE_CORE_TURNS": "/nowhere"},
            "BANYAN_DECODE_CORE_TURNS=/nowhere: expected a folder that all workers of this machine "
            "have.",
        ),
        (
            {"BANYAN_DECODE_MAX_ADAPTERS": "0"},
            "BANYAN_DECODE_MAX_ADAPTERS=0: expected a whole number from 1.",
        ),
        (
            {"BANYAN_DECODE_MAX_RUNNING": "600"},
            "BANYAN_DECODE_MAX_RUNNING=600: expected 1 to 512, which is "
            "BANYAN_DECODE_MAX_STEP_TOKENS.",
        ),
        (
            {"BANYAN_DECODE_MAX_STEP_TOKENS": "0"},
            "BANYAN_DECODE_MAX_STEP_TOKENS=0: expected a whole number from 1.",
        ),
        (
            {"BANYAN_DECODE_NUM_THREADS": "0"},
            "BANYAN_DECODE_NUM_THREADS=0: expected a whole number from 1 or nothing.",
        ),
        (
            {"BANYAN_DECODE_NUMERICS": "deterministic", "BANYAN_DECODE_NUM_THREADS": "2"},
            "BANYAN_DECODE_NUM_THREADS=2: expected 1, because BANYAN_DECODE_NUMERICS is "
            "deterministic.",
        ),
        (
            {"BANYAN_DECODE_NUMERICS": "deterministic", "BANYAN_DECODE_QUANTIZE": "int8"},
            "BANYAN_DECODE_QUANTIZE=int8: expected it unset, because BANYAN_DECODE_NUMERICS is "
            "deterministic.",
        ),
        (
            {"BANYAN_DECODE_QUANTIZE": "int2"},
            "BANYAN_DECODE_QUANTIZE=int2: expected one of int8, int4",
        ),
        (
            {"BANYAN_DECODE_KV_DTYPE": "int4"},
            "BANYAN_DECODE_KV_DTYPE=int4: expected one of float32, bfloat16, int8",
        ),
        (
            {"BANYAN_DECODE_KV_BYTES": "0"},
            "BANYAN_DECODE_KV_BYTES=0: expected a whole number from 1.",
        ),
        (
            {"BANYAN_DECODE_NUM_BLOCKS": "0"},
            "BANYAN_DECODE_NUM_BLOCKS=0: expected a whole number from 1 or nothing.",
        ),
        ({"BANYAN_DECODE_GRACE_S": "-1"}, "BANYAN_DECODE_GRACE_S=-1: expected 0 or more seconds."),
        (
            {"BANYAN_DECODE_ADVERTISE": "me"},
            "BANYAN_DECODE_ADVERTISE=me: expected HOST:PORT, port 0 to 65535 or nothing.",
        ),
        (
            {
                "BANYAN_DECODE_RUNNER": "torch",
                "BANYAN_DECODE_MODEL": "/nowhere",
                "BANYAN_DECODE_DEVICE": "gpu",
            },
            "BANYAN_DECODE_DEVICE=gpu: device: 'gpu', expected 'cpu', 'cuda' or 'cuda:N'.",
        ),
        ({"BANYAN_DECODE_RUNER": "x"}, "BANYAN_DECODE_RUNER is not a setting: "),
        ({"BANYAN_POLICIES": "/nowhere"}, "BANYAN_POLICIES=/nowhere: expected a readable"),
        ({"BANYAN_DIRECTORY": "guess"}, "BANYAN_DIRECTORY=guess: expected static:"),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(
    changes: dict[str, str | None], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {key: value for key, value in (GOOD | changes).items() if value is not None}
    assert run(Role.DECODE, env) == 2
    said = capsys.readouterr().err
    assert said.startswith(sentence) and said.count("\n") == 1


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (
            '[batching]\npolicy = "fifo"',
            "batching policy 'fifo' is not known; known are: chunked, decode_first, prefill_first.",
        ),
        (
            '[engine_admission]\npolicy = "hope"',
            "engine_admission policy 'hope' is not known; known are: past_future, watermark.",
        ),
        (
            '[batching]\npolicy = "chunked"\n[batching.decode_first]\naging_s = 0.0',
            "[batching.decode_first] aging_s: expected more than 0, got 0.0.",
        ),
    ],
)
def test_an_unknown_policy_stops_the_start_and_lists_the_known(
    section: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policies.toml"
    path.write_text(section)
    assert run(Role.DECODE, GOOD | {"BANYAN_POLICIES": str(path)}) == 2
    assert capsys.readouterr().err == f"{path}: {sentence}\n"


def test_a_pool_smaller_than_a_block_names_its_own_setting(
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"RUNNER": "torch", "MODEL": str(model_folder()), "KV_BYTES": "100"}
    assert run(Role.DECODE, GOOD | {f"BANYAN_DECODE_{k}": v for k, v in changes.items()}) == 2
    said = capsys.readouterr().err
    assert said.startswith("BANYAN_DECODE_KV_BYTES=100: expected ") and said.count("\n") == 1
    assert "which is one block of this model" in said


def test_a_worker_runs_without_torch_and_drains_on_sigterm() -> None:
    code = "import sys; sys.modules['torch'] = None; from banyan_decode.main import main; main()"
    path = os.environ["PATH"]
    with subprocess.Popen(
        [sys.executable, "-c", code], env=GOOD | {"PATH": path}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "worker serves" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(20) == 0, rest
        assert "draining" in rest


def test_without_torch_the_torch_runner_is_refused_with_the_remedy(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from banyan_prefill.main import main; main()"
    env = {key.replace("DECODE", "PREFILL"): value for key, value in GOOD.items()}
    env |= {"BANYAN_PREFILL_RUNNER": "torch", "BANYAN_PREFILL_MODEL": str(tmp_path)}
    env |= {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("BANYAN_PREFILL_RUNNER=torch needs torch: install the service")


_LOADED = """
import os, sys, time
from pathlib import Path
import numpy

def seen():
    return len(os.listdir("/proc/self/task")), os.sched_getaffinity(0)

before = seen()
from banyan_worker.runners import RunnerKind, load_runner

sizes = dict(block_size=16, kv_bytes=1 << 20, num_blocks=None, num_threads=2)
folder = Path(sys.argv[1])
load_runner(RunnerKind.TORCH, prefix="", folder=folder, name=None, numerics="fast", **sizes)
while seen() != before:
    time.sleep(0.01)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_loading_leaves_no_thread_of_openmp_behind_and_binds_none() -> None:
    """One more would make the steps' threads sleep at every barrier."""
    env = os.environ | {"OMP_NUM_THREADS": "2", "OMP_PROC_BIND": "true"}
    command = [sys.executable, "-c", _LOADED, str(model_folder())]
    subprocess.run(command, env=env, check=True, timeout=60)
