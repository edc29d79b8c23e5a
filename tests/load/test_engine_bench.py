"""The engine bench: what it counts, how it talks to its sides, and the table it makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from banyan_engine.demo import model_folder
from banyan_text.hf_tokenizer import HfTokenizer
from engine_bench import models, report
from engine_bench.bench import Bench
from engine_bench.serving import Side, SideFailed
from result_table import RESULTS


def test_a_decode_step_of_a_dense_model_reads_each_parameter_once() -> None:
    cost = models.cost(model_folder())
    config = json.loads((model_folder() / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner
    params = config["num_hidden_layers"] * layer + hidden * config["vocab_size"]
    assert cost.params_read(1) == cost.params_read(32) == params
    assert cost.flops(1, 0, 1) == 2 * params


def test_experts_are_read_as_they_are_hit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(models.SMALL_MOE))
    cost = models.cost(tmp_path)
    without = cost.head + cost.num_layers * cost.dense_per_layer
    every = cost.num_layers * cost.num_experts * cost.expert
    assert cost.params_read(1) - without == pytest.approx(every * 4 / 32)
    assert cost.params_read(2) - without == pytest.approx(every * (1 - (28 / 32) ** 2))
    assert cost.params_read(1000) == pytest.approx(without + every)
    assert 0.5e9 < without + every < 0.55e9


def test_causal_attention_counts_each_pair_once() -> None:
    cost = models.Cost(num_layers=3, num_heads=2, head_dim=4, head=0, dense_per_layer=0)
    # Each of the pairs costs a product for its score and one for its value: 2 * 4 each.
    assert cost.prefill_flops(5) == 15 * 3 * 2 * (2 * 4 + 2 * 4)


def test_the_made_up_tokenizer_has_a_text_for_every_token(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(models.QWEN3_06B))
    (tmp_path / "tokenizer.json").write_text(models.tokenizer_json(151_936))
    tokenizer = HfTokenizer(tmp_path)
    assert tokenizer.vocab_size == 151_936
    words = {tokenizer.token_bytes(token_id) for token_id in range(151_936)}
    assert len(words) == 151_936 and b"" not in words
    assert tokenizer.decode(tokenizer.encode('{"a": [1, "ä"]}', True)) == '{"a": [1, "ä"]}'


def test_a_side_answers_and_says_what_went_wrong() -> None:
    bench = Bench(num_rounds=1, num_threads=1)
    with bench.banyan(models.DEMO, num_tokens=1024) as side:
        described = side.ask("describe")
        kv = described["kv_token_bytes"]
        assert described["kv_pool_bytes"] == (1024 + 64 * 16) * kv
        prompt = list(range(300, 320))
        assert side.ask("greedy", token_ids=prompt, num_tokens=3) == side.ask(
            "greedy", token_ids=prompt, num_tokens=3
        )
        step = side.ask("decode", num_sequences=2, context=48, num_steps=3)
        assert step["step_s"] > 0 < step["plan_s"]
        answer = side.ask("requests", lengths=[[20, 3], [40, 5]])
        assert answer["num_output"] == 8
        with pytest.raises(SideFailed, match="KeyError"):
            side.ask("nothing")
        assert side.ask("first_token", num_tokens=40) > 0  # it goes on


def test_a_side_that_ends_is_told_from_one_that_answers() -> None:
    with (
        Side(sys.executable, "banyan_side", "wrong", threads=1, environment={}) as side,
        pytest.raises(SideFailed, match="banyan_side ended with 1"),
    ):
        side.ask("describe")


def test_rounds_alternate() -> None:
    asked: list[str] = []

    def ask(name: str) -> float:
        asked.append(name)
        return float(len(asked))

    found = Bench(3, 1).rounds({"a": lambda: ask("a"), "b": lambda: ask("b")})
    assert asked == ["a", "b"] * 3
    assert found == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}


def test_the_page_says_what_the_results_say() -> None:
    """Who edits the table by hand, or a result, is told: `bench_engine.py --only-tables`."""
    text = report.PAGE.read_text()
    assert report.insert(text, report.table(report.newest())) == text


def test_what_is_not_measured_says_why() -> None:
    machine = {"num_cores": 2, "processor": "P", "flags": []}
    result = {"date": "2026-11-28", "commit": "c", "num_rounds": 5, "machine": machine}
    figures = {"m": {"skipped": "no such | family"}}
    made = report.table({"grammar": result | {"figures": figures}})
    assert "| not measured: no such / family | 5 % |" in made


def test_every_result_says_where_it_comes_from() -> None:
    for path in RESULTS.glob("*-engine-*.json"):
        result = json.loads(path.read_text())
        for key in ("date", "commit", "command", "machine", "num_rounds", "figures"):
            assert result[key], f"{path.name}: {key}"
