"""How long the gateway's event loop stands still while prompts of 100,000 tokens come in.

In one process, with the demo model's tokenizer: each prompt takes the gateway's way (parse,
template, tokenise, hash: off the loop; the worker's message: on it) while a ticker notes the
longest time between two of its ticks.

    python load-tests/loop_stall.py [--prompts 10] [--out load-tests/results/NAME.json]
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import banyan_engine.demo
from banyan_core.hashing import block_hashes
from banyan_core.types import SequenceSpec
from banyan_gateway.auth import DEFAULT_TENANT
from banyan_gateway.grammar_trials import GrammarTrials
from banyan_gateway.main import THREAD_SWITCH_S
from banyan_gateway.prepare import Arrival, Prepared, Preparer
from banyan_gateway.served_models import ServedModels
from banyan_runtime import codec
from banyan_runtime.offload import ThreadOffload
from banyan_text.card import read_card
from banyan_text.hf_tokenizer import HfTokenizer

TICK_S = 0.001
CONTEXT_TOKENS = 131_072
SENTENCE = "The amber key opens door 4821. Which door does the amber key open? "


async def longest_gap(work: Callable[[], Awaitable[Any]]) -> tuple[float, float, Any]:
    """How long `work` took, the longest gap between ticks meanwhile (both in ms), its result."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest, started = 0.0, time.perf_counter()
    result = await work()
    wall = time.perf_counter() - started
    await asyncio.sleep(2 * TICK_S)
    ticking.cancel()
    return 1e3 * wall, 1e3 * longest, result


def body(number: int, text: str) -> bytes:
    message = {"role": "user", "content": f"{number} {text}"}
    return json.dumps({"model": "banyan-demo", "messages": [message], "max_tokens": 8}).encode()


async def measure(num_prompts: int) -> dict[str, dict[str, float]]:
    folder = Path(banyan_engine.demo.__path__[0]) / "banyan-demo"
    card = dataclasses.replace(
        read_card(folder, 16, "fast", "banyan-demo"), context_tokens=CONTEXT_TOKENS
    )
    models = ServedModels(card, started_unix_s=0)
    tokenizer = HfTokenizer(folder)
    preparer = Preparer(tokenizer, card, models, GrammarTrials(tokenizer, card.end_token_ids))
    arrival = Arrival("chatcmpl-1", DEFAULT_TENANT, 0, 1, None)
    offload = ThreadOffload(2)
    text = SENTENCE * (100_000 // 15)

    async def nothing() -> None:
        await asyncio.sleep(0.5)

    async def prepare(number: int) -> Prepared:
        prepared: Prepared = await offload.run(
            partial(preparer.chat, arrival=arrival), body(number, text)
        )
        return prepared

    async def encode(spec: SequenceSpec) -> bytes:
        return codec.sequence_spec_to_pb(spec).SerializeToString()

    _, calm, _ = await longest_gap(nothing)
    found = {"nothing": [(0.0, calm)], "prepare": [], "hash": [], "message": []}
    for number in range(num_prompts):
        wall, gap, prepared = await longest_gap(partial(prepare, number))
        found["prepare"].append((wall, gap))
        request = prepared.requests[0]
        tokens = request.prompt_token_ids
        hashing = partial(offload.run, block_hashes, tokens, 16, b"s" * 16)
        wall, gap, _ = await longest_gap(hashing)
        found["hash"].append((wall, gap))
        spec = SequenceSpec(
            "r/0/0", "gateway-0", 1, card.digest, tokens, (), request.sampling, b"s" * 16
        )
        wall, gap, _ = await longest_gap(partial(encode, spec))
        found["message"].append((wall, gap))
    await offload.close()
    return {
        name: {
            "wall_ms_median": round(sorted(wall for wall, _ in pairs)[len(pairs) // 2], 1),
            "longest_gap_ms_median": round(sorted(gap for _, gap in pairs)[len(pairs) // 2], 1),
            "longest_gap_ms_max": round(max(gap for _, gap in pairs), 1),
        }
        for name, pairs in found.items()
    } | {"prompt": {"tokens": len(tokens), "bytes": len(body(0, text))}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    options = parser.parse_args()
    sys.setswitchinterval(THREAD_SWITCH_S)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "load-tests/loop_stall.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "parts": asyncio.run(measure(options.prompts)),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
