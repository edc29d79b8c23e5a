"""A worker's figures for Prometheus, read when they are scraped; vLLM's names where one exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

GAUGES = {
    "vllm:num_requests_running": "Sequences in the batch.",
    "vllm:num_requests_waiting": "Sequences admitted that are in no batch yet.",
    "vllm:kv_cache_usage_perc": "Share of KV blocks in use, 0 to 1.",
    "banyan_worker_leases": "Prefills whose blocks are held for a pull.",
    "banyan_worker_fetching": "Sequences whose KV is being fetched.",
    "banyan_worker_retained_sequences": "Sequences whose tokens a gateway may still ask for.",
    "banyan_worker_adapters": "LoRA adapters in memory.",
    "banyan_worker_draining": "1 while the worker takes no more work.",
}
COUNTERS = {
    "vllm:prompt_tokens": "Prompt tokens that steps computed.",
    "vllm:generation_tokens": "Tokens sampled.",
    "vllm:prefix_cache_queries": "Tokens looked up in the prefix cache.",
    "vllm:prefix_cache_hits": "Tokens found in the prefix cache.",
    "vllm:num_preemptions": "Sequences that gave their blocks up and computed them again.",
    "vllm:external_prefix_cache_queries": "Tokens looked for at other workers and stores.",
    "vllm:external_prefix_cache_hits": "Tokens whose KV came from other workers and stores.",
    "banyan_worker_steps": "Engine steps.",
    "banyan_worker_refused": "Sequences refused.",
    "banyan_worker_pulls": "Pulls from leased workers.",
    "banyan_worker_failed_pulls": "Pulls that broke; another source was used.",
    "banyan_worker_fetched_blocks": "Blocks fetched from workers and stores.",
    "banyan_worker_fetched_bytes": "Bytes of KV fetched from workers and stores.",
    "banyan_worker_exported_bytes": "Bytes of KV sent to others.",
    "banyan_worker_rejected_pages": "Pages whose digest did not match.",
    "banyan_worker_exported_pages": "Pages sent to others.",
    "banyan_worker_expired_leases": "Leases that nobody released.",
    "banyan_worker_offloaded_blocks": "Blocks that the store took.",
    "banyan_worker_offload_dropped_blocks": "Blocks that no store took: none is up, or it is slow.",
    "banyan_worker_dropped_events": "Events that the bus had no room for.",
}


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Size of the KV cache: blocks, and tokens in each."""

    block_size: int
    num_blocks: int


class WorkerCollector(Collector):
    """`figures` gives a value for every name above. The label `engine` is the worker's id."""

    def __init__(
        self,
        model: str,
        engine: str,
        cache: CacheConfig,
        figures: Callable[[], Mapping[str, float]],
    ) -> None:
        self._labels = {"model_name": model, "engine": engine}
        self._cache = cache
        self._figures = figures

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        values = self._figures()
        names, labels = list(self._labels), list(self._labels.values())
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=names)
            gauge.add_metric(labels, values[name])
            yield gauge
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(name, text, labels=names)
            counter.add_metric(labels, values[name])
            yield counter
        config = {
            "block_size": str(self._cache.block_size),
            "num_gpu_blocks": str(self._cache.num_blocks),
        }
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "Its value is 1.", labels=[*names, *config]
        )
        info.add_metric([*labels, *config.values()], 1)
        yield info
