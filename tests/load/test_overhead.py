"""The overhead bench: its client at the real endpoint, its figures of processes, its tables."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

from overhead import report
from overhead.client import BadAnswer, Client, Target, echo, keep_asking
from overhead.processes import bare, tree_cpu_s
from result_table import RESULTS

PROMPT = "Which door? "


def test_the_client_reads_whole_answers_of_the_bare_endpoint() -> None:
    with bare() as server:
        target = Target(server.port, "echo", PROMPT, 30)
        answers = asyncio.run(keep_asking([target] * 3, 2))
    assert len(answers) == 6
    for answer in answers:
        assert b"".join(answer.text).decode() == echo(PROMPT, 30)
        assert answer.asked_ns < answer.first_ns < answer.end_ns


def test_the_client_takes_no_figure_from_a_broken_answer() -> None:
    async def main() -> None:
        with bare() as server:
            async with Client(Target(server.port, "echo", PROMPT, "many")) as client:  # type: ignore[arg-type]
                await client.ask()

    with pytest.raises(BadAnswer, match="the connection was closed"):
        asyncio.run(main())


def test_an_echo_is_the_prompt_over_and_over() -> None:
    assert echo("abc", 7) == "abcabca"
    assert echo("abc", 2) == "ab"


def test_the_cpu_of_a_process_holds_that_of_its_children() -> None:
    busy = "while True: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while tree_cpu_s(process.pid) < 0.5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_a_table_goes_between_the_marks_and_nowhere_else() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter"
    made = report.insert(page, "new")
    assert made == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter"
    with pytest.raises(ValueError, match="expected the marks"):
        report.insert("no marks", "new")


def test_the_readmes_say_what_the_results_say() -> None:
    """Who edits a table by hand, or a result, is told: `bench_overhead.py --only-tables`."""
    made = report.table(report.newest())
    pages = [path for path in report.READMES if report.BEGIN in path.read_text()]
    assert RESULTS.parent / "README.md" in pages
    for path in pages:
        text = path.read_text()
        assert report.insert(text, made) == text, path


def test_every_result_says_where_it_comes_from() -> None:
    for path in RESULTS.glob("*-overhead-*.json"):
        result = json.loads(path.read_text())
        for key in ("date", "commit", "command", "machine", "figures"):
            assert result[key], f"{path.name}: {key}"
