"""`banyan demo`: a whole mesh for one minute. It comes up, answers twice over HTTP, goes down.

The second question repeats the first one's long text, so that its prompt is found in the cache.
Nothing is left: the state folder is a temporary one, ports are free ones, and the supervisor's
children die with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from banyan_cli.chat import ChatOptions, ask
from banyan_cli.client import Answer, HttpClient
from banyan_cli.errors import CommandError
from banyan_cli.explain import fetch, ledger_table
from banyan_cli.state import MeshState, StateFolder

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0
RECORD_TIMEOUT_S = 5.0
POLL_S = 0.05

STORY = (
    "The amber key opens door 4821. The copper key opens door 1076. The silver key opens door "
    "9350. The ivory key opens door 2764. The velvet key opens door 6138. "
)
QUESTIONS = (
    f"{STORY}Which door does the amber key open?",
    f"{STORY}Which door does the ivory key open?",
)


def demo(console: Console, arguments: Sequence[str] = ()) -> None:
    """Raises CommandError when the mesh does not come up or does not answer."""
    with tempfile.TemporaryDirectory(prefix="banyan-demo-") as path:
        folder = StateFolder(Path(path))
        command = [sys.executable, "-m", "banyan_cli.main", "up", "--port", "0"]
        command += ["--state-dir", path, *arguments]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            state = _await_ready(folder, process)
            with HttpClient(state.gateway_url) as client:
                _show(client, console)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()  # its children die with it
                process.wait()


def _await_ready(folder: StateFolder, process: subprocess.Popen[bytes]) -> MeshState:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise CommandError("The mesh did not start, see above.", process.returncode or 1)
        state = folder.read_state()
        if state is not None and state.ready:
            return state
        time.sleep(POLL_S)
    raise CommandError(f"The mesh was not up within {START_TIMEOUT_S:g} s.", 1)


def _show(client: HttpClient, console: Console) -> None:
    model = client.model()
    for question in QUESTIONS:
        console.print(f"\n[bold]question[/bold] {question}", highlight=False)
        console.print("[bold]answer[/bold]   ", end="")
        message = {"role": "user", "content": question}
        answer = ask(client, model, [message], ChatOptions(max_tokens=48), console)
        _show_facts(_await_record(client, answer), answer, console)


def _await_record(client: HttpClient, answer: Answer) -> dict[str, Any]:
    """The record has its end a moment after the stream has."""
    until = time.monotonic() + RECORD_TIMEOUT_S
    view = fetch(client, answer.request_id)
    while "e2e_ms" not in view and time.monotonic() < until:
        time.sleep(POLL_S)
        view = fetch(client, answer.request_id)
    return view


def _show_facts(view: dict[str, Any], answer: Answer, console: Console) -> None:
    workers = {row["verb"]: row["worker_id"] for row in view["workers"]}
    decoded = workers.get("decode", "nobody")
    lines = (
        ("prefilled by", workers.get("prefill", f"{decoded} (not split)")),
        ("decoded by", decoded),
        ("cached", f"{answer.num_cached_tokens} of {answer.num_prompt_tokens} prompt tokens"),
        ("because", view["placements"][-1]["reason"]),
    )
    for name, value in lines:
        console.print(f"[bold]{name:13}[/bold]{value}", highlight=False)
    console.print(ledger_table(view))
