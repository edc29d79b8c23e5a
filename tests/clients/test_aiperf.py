"""aiperf, unmodified, measures the mesh with the demo model's own tokenizer.

Its environment is large (139 packages, 1.2 GB): it is made when this test first runs.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from tests.clients.conftest import ClientMesh
from tests.clients.environments import environment

import banyan_engine.demo

pytestmark = pytest.mark.timeout(1200)

MODEL_FOLDER = Path(banyan_engine.demo.__path__[0]) / "banyan-demo"
NUM_REQUESTS = 20
OUTPUT_TOKENS = 16


def test_every_request_is_answered_at_the_length_asked_for(
    mesh: ClientMesh, tmp_path: Path
) -> None:
    command = [str(environment("aiperf") / "aiperf"), "profile"]
    command += ["--model", mesh.model(), "--url", mesh.url, "--endpoint-type", "chat"]
    command += ["--streaming", "--tokenizer", str(MODEL_FOLDER), "--ui", "none"]
    command += ["--use-server-token-count"]  # its own would encode the answer's text anew
    command += ["--request-count", str(NUM_REQUESTS), "--concurrency", "4"]
    command += ["--isl", "100", "--osl", str(OUTPUT_TOKENS)]
    command += ["--extra-inputs", f"min_tokens:{OUTPUT_TOKENS}"]
    command += ["--extra-inputs", "ignore_eos:true"]
    command += ["--artifact-dir", str(tmp_path)]
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    (page,) = tmp_path.rglob("profile_export_aiperf.json")
    figures = json.loads(page.read_text())
    assert figures["request_count"]["avg"] == NUM_REQUESTS
    assert figures["output_sequence_length"]["min"] == OUTPUT_TOKENS
    assert figures["output_sequence_length"]["max"] == OUTPUT_TOKENS
    assert figures["time_to_first_token"]["avg"] > 0
    assert not figures.get("error_summary")
