"""Workers that take turns for the machine's cores, as `banyan up` has them where cores are few."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.running import SAMPLED, RunningMesh

LONG = SAMPLED | {"max_tokens": 4000}
"""A second of steps or more: fewer tokens were all computed before a busy client had read 20."""


def test_a_worker_killed_in_the_middle_of_its_turn_holds_nobody_up(tmp_path: Path) -> None:
    roles = ("PREFILL", "DECODE")
    settings = {f"BANYAN_{role}_CORE_TURNS": str(tmp_path) for role in roles}
    mesh = RunningMesh.start(tmp_path / "mesh", settings=settings | {"OMP_NUM_THREADS": "2"})
    killed: list[str] = []

    def kill(num_chunks: int) -> None:
        if num_chunks == 20 and not killed:
            killed.append(mesh.streaming_worker())
            mesh.kill(killed[0])

    try:
        heard = mesh.stream("Tell a story about the amber key.", kill, **LONG)
        assert heard.finishes == ("length",)
        assert mesh.explain(heard.request_id)["num_recoveries"] >= 1
        mesh.wait_restarted(killed[0], 0)
        again = mesh.stream("Tell another one.", max_tokens=40, extra_body={"ignore_eos": True})
        assert again.finishes == ("length",)
        for role in ("prefill-0", "decode-0"):
            log = (mesh.folder / "logs" / f"{role}.log").read_text()
            assert "steps go on without it" not in log
    finally:
        mesh.stop()
