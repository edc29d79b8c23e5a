"""`banyan generate`: lines in, lines out, and a run that was killed goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.engine.packed_folders import Form, pack_folder

import banyan_engine.demo
from banyan_cli.answers_file import AnswersFile
from banyan_cli.errors import CommandError

QUESTION = "The amber key opens door 4821. Which door does the amber key open?"
CHAT = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 48, "temperature": 0}
NUM_LINES = 100
"""More than the engine takes at once, so that answers are written all the time."""


def write_input(path: Path, lines: list[object]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def command(source: Path, target: Path) -> list[str]:
    arguments = ["generate", "--input", str(source), "--output", str(target)]
    arguments += ["--numerics", "deterministic"]
    return [sys.executable, "-m", "banyan_cli.main", *arguments]


def run(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(source, target), capture_output=True, text=True, check=False)


def answers(path: Path) -> dict[str, Any]:
    """Lines by key; no key stands there twice."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    by_key = {line["custom_id"]: line for line in lines}
    assert len(by_key) == len(lines)
    return by_key


def choices(line: dict[str, Any]) -> object:
    return line["response"]["body"]["choices"]


def test_lines_of_every_kind_are_answered_and_bad_ones_named(tmp_path: Path) -> None:
    source = write_input(
        tmp_path / "in.jsonl",
        [
            CHAT,
            {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT},
            {"prompt": "The amber key", "max_tokens": 3, "n": 2, "logprobs": 2, "ignore_eos": True},
            {"custom_id": "b", "body": {"prompt": ["The", "A key"], "max_tokens": 2, "seed": 5}},
            {"custom_id": "wrong", "body": CHAT | {"temperature": -1}},
            {"custom_id": "a", "body": CHAT},
            {"custom_id": "c", "url": "/v1/embeddings", "body": CHAT},
            {"max_tokens": 3},
            [1],
        ],
    )
    with source.open("a") as file:
        file.write("\nno json\n")
    target = tmp_path / "out.jsonl"
    result = run(source, target)
    assert result.returncode == 1, result.stderr
    assert "4 answered, 6 failed, 0 were there already" in result.stderr
    lines = answers(target)
    assert "4821" in lines["line-1"]["response"]["body"]["choices"][0]["message"]["content"]
    assert choices(lines["a"]) == choices(lines["line-1"])
    assert lines["line-1"]["response"]["status_code"] == 200
    plain = lines["line-3"]["response"]["body"]
    assert [len(each["logprobs"]["tokens"]) for each in plain["choices"]] == [3, 3]
    assert plain["usage"]["completion_tokens"] == 6
    assert [each["index"] for each in lines["b"]["response"]["body"]["choices"]] == [0, 1]
    errors = {key: line["error"] for key, line in lines.items() if line["error"]}
    assert errors["wrong"]["param"] == "temperature"
    assert errors["line-6"]["param"] == "custom_id"
    assert errors["line-7"]["param"] == "url"
    assert errors["line-8"]["param"] == "messages"
    assert errors["line-9"]["code"] == errors["line-11"]["code"] == "invalid_json"
    assert run(source, target).returncode == 0
    assert answers(target) == lines


def test_a_packed_folder_needs_no_option_and_a_text_is_scored(tmp_path: Path) -> None:
    packed = Path(shutil.copytree(banyan_engine.demo.model_folder(), tmp_path / "packed"))
    pack_folder(packed, Form("awq", group=32, zeros=True))
    scored = {"prompt": [[9, 8, 7], [6]], "max_tokens": 0, "echo": True, "logprobs": 1}
    source = write_input(tmp_path / "in.jsonl", [CHAT, scored])
    target = tmp_path / "out.jsonl"
    options = ["generate", "--input", str(source), "--output", str(target), "--model", str(packed)]
    ran = subprocess.run(
        [sys.executable, "-m", "banyan_cli.main", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = answers(target)
    assert "4821" in lines["line-1"]["response"]["body"]["choices"][0]["message"]["content"]
    body = lines["line-2"]["response"]["body"]
    likely = [each["logprobs"]["token_logprobs"] for each in body["choices"]]
    assert [len(each) for each in likely] == [3, 1]
    assert [each[0] for each in likely] == [None, None]
    assert all(each < 0 for each in likely[0][1:])
    assert body["usage"]["completion_tokens"] == 0


@pytest.mark.timeout(300)
def test_a_killed_run_goes_on_to_the_same_answers(tmp_path: Path) -> None:
    """With draws, so that a seed which changed would show."""
    lines: list[object] = [
        {"prompt": f"{QUESTION} {number}", "max_tokens": 1 + number % 8, "temperature": 1.0}
        for number in range(NUM_LINES)
    ]
    source = write_input(tmp_path / "in.jsonl", lines)
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    assert run(source, whole).returncode == 0
    kill_when_begun(command(source, resumed), resumed)
    num_before = resumed.read_bytes().count(b"\n")
    assert 0 < num_before < NUM_LINES
    with resumed.open("ab") as file:
        file.write(b'{"custom_id": "line-100", "response": {"sta')
    result = run(source, resumed)
    assert result.returncode == 0, result.stderr
    assert f"{NUM_LINES - num_before} answered, 0 failed, {num_before} were there" in result.stderr
    first, second = answers(whole), answers(resumed)
    assert len(first) == NUM_LINES
    assert {key: choices(line) for key, line in first.items()} == {
        key: choices(line) for key, line in second.items()
    }
    assert len({json.dumps(choices(line)) for line in first.values()}) > NUM_LINES // 4


def kill_when_begun(arguments: list[str], target: Path) -> None:
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not target.exists() or not target.stat().st_size:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize("whole", [b"", b'{"custom_id": "a"}\n', b'{"custom_id": "a"}\n' * 5000])
@pytest.mark.parametrize("torn", [b"", b"{", b'{"custom_id": "b"}', b"x" * 100_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, whole: bytes, torn: bytes) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(whole + torn)
    with AnswersFile(path) as file:
        assert file.keys == ({"a"} if whole else set())
        file.write({"custom_id": "c"})
    assert path.read_bytes() == whole + b'{"custom_id": "c"}\n'


def test_a_file_of_somebody_else_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"custom_id": "a"}\n{"name": "b"}\n')
    with pytest.raises(CommandError, match="line 2 is no answer"):
        AnswersFile(path)
    assert path.read_text().endswith('"b"}\n')


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with AnswersFile(path), pytest.raises(CommandError, match="another run"):
        AnswersFile(path)


def test_what_cannot_work_is_one_sentence(tmp_path: Path) -> None:
    result = run(tmp_path / "missing.jsonl", tmp_path / "out.jsonl")
    assert result.returncode == 2
    assert result.stderr.strip().endswith("missing.jsonl: expected a file of JSON lines.")
    source = write_input(tmp_path / "in.jsonl", [CHAT])
    assert "is the input itself" in run(source, source).stderr
    assert source.read_text() == json.dumps(CHAT) + "\n"


def test_tools_are_called_and_reasoning_told_apart_as_the_gateway_does(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(Path(banyan_engine.demo.__path__[0]) / "banyan-demo", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] += "{# <tool_call> <think> #}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    door = {"type": "object", "properties": {"door": {"enum": [4821]}}, "required": ["door"]}
    tool = {"name": "open", "parameters": door | {"additionalProperties": False}}
    named = {"type": "function", "function": {"name": "open"}}
    tools = {"tools": [{"type": "function", "function": tool}], "tool_choice": named}
    slow = {"type": "integer", "multipleOf": 1_000_003}
    wanted = {"type": "json_schema", "json_schema": {"name": "slow", "schema": slow}}
    lines: list[object] = [CHAT | tools | {"max_tokens": 200}, CHAT | {"response_format": wanted}]
    source, target = write_input(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    ran = subprocess.run(
        [*command(source, target), "--model", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    answered = answers(target)
    (choice,) = answered["line-1"]["response"]["body"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "open"
    assert json.loads(call["function"]["arguments"]) == {"door": 4821}
    refused = answered["line-2"]["error"]
    assert refused["param"] == "response_format.json_schema.schema"
    assert "takes longer than 2 s" in refused["message"]
