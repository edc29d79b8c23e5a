"""A mesh of real processes, as `banyan up` starts it, and ways to ask and to harm it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI

BANYAN = str(Path(sys.executable).parent / "banyan")
START_TIMEOUT_S = 90.0
READY_TIMEOUT_S = 60.0
ROLES = ("decode", "prefill")
# Drawn so wildly that nothing repeats: an answer that falls into a loop is foretold by drafts,
# several tokens a chunk, and is over before anybody dies.
SAMPLED: dict[str, Any] = {
    "max_tokens": 800,
    "temperature": 2.0,
    "seed": 5,
    "extra_body": {"ignore_eos": True},
}


@dataclass(frozen=True)
class Heard:
    """One streamed answer as the official client saw it."""

    request_id: str
    texts: tuple[str, ...]
    finishes: tuple[str | None, ...]


class RunningMesh:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def start(
        cls, folder: Path, *options: str, settings: Mapping[str, str] | None = None
    ) -> RunningMesh:
        command = [BANYAN, "up", "--detach", "--port", "0", "--state-dir", str(folder), *options]
        running = cls(folder)
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=START_TIMEOUT_S,
                check=False,
                env={**os.environ, **(settings or {})},
            )
        except BaseException:  # it is late, and would come up when nobody waits for it any more
            running.stop()
            raise
        assert done.returncode == 0, done.stdout + done.stderr
        return running

    def stop(self) -> None:
        command = [BANYAN, "down", "--state-dir", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True, timeout=READY_TIMEOUT_S)

    # ------------------------------------------------------------ what runs

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return state

    def process(self, name: str) -> dict[str, Any]:
        (found,) = [one for one in self.state()["processes"] if one["name"] == name]
        return dict(found)

    def kill(self, name: str) -> None:
        os.kill(self.process(name)["pid"], signal.SIGKILL)

    def wait_restarted(self, name: str, num_restarts: int) -> None:
        """Until the supervisor has this process up again."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            process = self.process(name)
            if process["num_restarts"] > num_restarts and process["phase"] == "ready":
                return
            assert time.monotonic() < deadline, f"{name} does not come back: {process}"
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return str(self.state()["gateway_url"])

    def streaming_worker(self) -> str:
        """The worker with a running sequence, by what it says itself; there must be one soon.

        Between the prefill and the decode of an answer there is none for a moment.
        """
        workers = [str(one["name"]) for one in self.state()["processes"] if one["service"] in ROLES]
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not (names := [name for name in workers if self.num_running(name)]):
            assert time.monotonic() < deadline, "nothing streams"
            time.sleep(0.01)
        return names[0]

    # ------------------------------------------------------------ asking

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)

    def model(self) -> str:
        with self.client() as client:
            return client.models.list().data[0].id

    def stream(
        self, prompt: str, on_chunk: Callable[[int], None] = lambda _: None, **options: Any
    ) -> Heard:
        """A streamed completion; `on_chunk` gets the number of chunks with text so far."""
        texts: dict[int, str] = {}
        finishes: dict[int, str | None] = {}
        num_chunks, request_id = 0, ""
        with self.client() as client:
            named = {"model": self.model()} | options
            answer = client.completions.create(prompt=prompt, stream=True, **named)
            for chunk in answer:
                request_id = chunk.id
                for choice in chunk.choices:
                    texts[choice.index] = texts.get(choice.index, "") + choice.text
                    finishes[choice.index] = choice.finish_reason
                    num_chunks += bool(choice.text)
                    on_chunk(num_chunks)
        order = sorted(texts)
        return Heard(request_id, tuple(texts[i] for i in order), tuple(finishes[i] for i in order))

    def explain(self, request_id: str) -> dict[str, Any]:
        view: dict[str, Any] = httpx2.get(f"{self.url}/v1/requests/{request_id}", timeout=60).json()
        return view

    def num_running(self, name: str) -> int:
        """Sequences in the batch of this worker, from its own metrics."""
        address = self.process(name)["metrics_address"]
        text = httpx2.get(f"http://{address}/metrics", timeout=60).text
        (line,) = [
            line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")
        ]
        return round(float(line.rpartition(" ")[2]))
