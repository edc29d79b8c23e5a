"""How processes are started: their settings, their share of the machine, their ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from banyan_cli.errors import CommandError
from banyan_cli.launch import KV_MEMORY_BYTES, Launcher
from banyan_cli.options import HOST, MeshOptions, Numerics, Ports, RunnerKind, check_options
from banyan_cli.state import StateFolder
from banyan_core.model_spec import KvDtype, Quantize
from banyan_engine.demo import model_folder

POLICIES = Path(__file__).parents[2] / "infra" / "policies.toml"


def launcher(folder: Path, num_decode: int = 1, num_cores: int = 2) -> Launcher:
    options = MeshOptions(
        policies=POLICIES,
        runner=RunnerKind.ECHO,
        port=0,
        num_decode=num_decode,
        num_cores=num_cores,
    )
    return Launcher(options, StateFolder(folder))


@pytest.mark.parametrize(
    ("num_cores", "num_workers", "num_threads"), [(2, 2, 1), (8, 2, 4), (8, 3, 2), (2, 4, 1)]
)
def test_cores_and_kv_memory_are_split_between_workers(
    tmp_path: Path, num_cores: int, num_workers: int, num_threads: int
) -> None:
    mesh = launcher(tmp_path, num_decode=num_workers - 1, num_cores=num_cores)
    env = mesh.environment("decode-0", "decode", {})
    assert env["OMP_NUM_THREADS"] == str(num_threads)
    assert env["OMP_WAIT_POLICY"] == "passive"
    assert int(env["GOMP_SPINCOUNT"]) > 0
    assert int(env["BANYAN_DECODE_KV_BYTES"]) * num_workers <= KV_MEMORY_BYTES


@pytest.mark.parametrize(
    ("num_cores", "num_decode", "takes_turns", "num_threads"),
    [(2, 1, True, 2), (2, 3, True, 2), (3, 1, True, 3), (4, 1, False, 2), (1, 1, False, 1)],
)
def test_workers_with_less_than_two_cores_each_take_turns_with_all_of_them(
    tmp_path: Path, num_cores: int, num_decode: int, takes_turns: bool, num_threads: int
) -> None:
    options = MeshOptions(POLICIES, port=0, num_decode=num_decode, num_cores=num_cores)
    mesh = Launcher(options, StateFolder(tmp_path))
    for name, service in (("prefill-0", "prefill"), ("decode-0", "decode")):
        env = mesh.environment(name, service, {})
        assert env["OMP_NUM_THREADS"] == str(num_threads)
        folder = env.get(f"BANYAN_{service.upper()}_CORE_TURNS")
        assert folder == (str(tmp_path) if takes_turns else None)
        assert env.get("OMP_PROC_BIND") == ("true" if takes_turns else None)


@pytest.mark.parametrize(
    "one_thread", [{"runner": RunnerKind.ECHO}, {"numerics": Numerics.DETERMINISTIC}]
)
def test_workers_of_one_thread_take_no_turns(
    tmp_path: Path, one_thread: dict[str, RunnerKind | Numerics]
) -> None:
    options = MeshOptions(POLICIES, port=0, num_cores=2, **one_thread)  # type: ignore[arg-type]  # fields by name
    env = Launcher(options, StateFolder(tmp_path)).environment("decode-0", "decode", {})
    assert "BANYAN_DECODE_CORE_TURNS" not in env
    assert env["OMP_NUM_THREADS"] == "1"


def test_process_keeps_its_ports_and_no_two_share_one(tmp_path: Path) -> None:
    mesh = launcher(tmp_path)
    names = ("gateway", "router", "prefill-0", "prefill-1")
    first = [mesh.addresses(name) for name in names]
    assert [mesh.addresses(name) for name in names] == first
    listed = [address for both in first for address in (both.main, both.metrics)]
    assert len(set(listed)) == len(listed)


def test_taken_port_is_not_handed_out() -> None:
    expected = Ports().take()
    with socket.socket() as taken:
        taken.bind((HOST, expected))
        assert Ports().take() != expected


def test_settings_from_outside_win(tmp_path: Path) -> None:
    mesh = launcher(tmp_path)
    env = mesh.environment("router", "router", {"BANYAN_ROUTER_SEED": "7", "BANYAN_POLICIES": "x"})
    assert (env["BANYAN_ROUTER_SEED"], env["BANYAN_POLICIES"]) == ("7", "x")
    assert env["BANYAN_ROUTER_ID"] == "router"


def test_an_outside_bus_leaves_the_index_at_home(tmp_path: Path) -> None:
    topics = POLICIES.with_name("topics.yaml")
    options = MeshOptions(policies=POLICIES, port=0, bus="kafka://h:9092", topics=topics)
    env = Launcher(options, StateFolder(tmp_path)).environment("kvstore", "kvstore", {})
    assert env["BANYAN_BUS_URL"] == "kafka://h:9092"
    assert env["BANYAN_TOPICS"] == str(topics)
    assert env["BANYAN_INDEX_URL"].startswith("redis://127.0.0.1:")


@pytest.mark.parametrize("service", ["gateway", "prefill", "decode"])
def test_all_who_make_the_card_are_told_the_same_formats(tmp_path: Path, service: str) -> None:
    options = MeshOptions(
        policies=POLICIES,
        port=0,
        quantize=Quantize.INT4,
        kv_dtype=KvDtype.INT8,
        adapters=tmp_path,
    )
    env = Launcher(options, StateFolder(tmp_path)).environment(service, service, {})
    prefix = f"BANYAN_{service.upper()}"
    assert (env[f"{prefix}_QUANTIZE"], env[f"{prefix}_KV_DTYPE"]) == ("int4", "int8")
    assert env["BANYAN_ADAPTERS"] == str(tmp_path)


TORCH = {"runner": RunnerKind.TORCH, "model": model_folder()}
EXACT = {**TORCH, "numerics": Numerics.DETERMINISTIC}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_decode": 0}, "--decode is 0: expected 1 to 16."),
        ({"num_prefill": 17}, "--prefill is 17: expected 0 to 16."),
        ({"num_routers": 0}, "--routers is 0: expected 1 to 4."),
        (
            {"bus": "kafka://h"},
            "--bus is kafka://h: expected redis://HOST:PORT or kafka://HOST:PORT[,HOST:PORT].",
        ),
        ({"quantize": Quantize.INT8}, "--quantize is int8: expected nothing, as --runner is echo."),
        (
            {**EXACT, "quantize": Quantize.INT8},
            "--quantize is int8: expected nothing, as --numerics is deterministic.",
        ),
        (
            {**EXACT, "kv_dtype": KvDtype.BFLOAT16},
            "--kv-dtype is bfloat16: expected nothing, as --numerics is deterministic.",
        ),
        (
            {**TORCH, "adapters": Path("/nowhere")},
            "The folder of adapters /nowhere does not exist.",
        ),
        ({"policies": Path("/nowhere")}, "The policy file /nowhere does not exist."),
        ({"runner": RunnerKind.TORCH}, "The torch runner needs a model"),
        (
            {"runner": RunnerKind.TORCH, "model": Path("/nowhere")},
            "The model folder /nowhere does not exist.",
        ),
        (
            {"runner": RunnerKind.TORCH, "model": POLICIES.parent},
            "has no config.json: expected one in Hugging Face layout.",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    changes: dict[str, object], sentence: str
) -> None:
    good: dict[str, object] = {"policies": POLICIES, "runner": RunnerKind.ECHO, "port": 0}
    check_options(MeshOptions(**good))  # type: ignore[arg-type]  # fields by name
    with pytest.raises(CommandError) as refused:
        check_options(MeshOptions(**{**good, **changes}))  # type: ignore[arg-type]  # as above
    assert sentence in str(refused.value)
    assert refused.value.exit_code == 2
