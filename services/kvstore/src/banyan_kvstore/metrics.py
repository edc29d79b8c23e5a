"""The store's own figures. The registry is passed in, so that several stores fit in a process."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from banyan_kvstore.tiers import Tiers


class TierCollector(Collector):
    """Reads the tiers when it is scraped."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers

    def collect(self) -> Iterator[Metric]:
        blocks = GaugeMetricFamily("banyan_kvstore_blocks", "Blocks held.", labels=["tier"])
        used = GaugeMetricFamily("banyan_kvstore_used_bytes", "Bytes held.", labels=["tier"])
        hits = CounterMetricFamily("banyan_kvstore_hits", "Blocks found.", labels=["tier"])
        evictions = CounterMetricFamily(
            "banyan_kvstore_evictions", "Blocks moved out to make room.", labels=["tier"]
        )
        damaged = CounterMetricFamily(
            "banyan_kvstore_damaged_files", "Files dropped because a check failed.", labels=["tier"]
        )
        for figures in self._tiers.figures():
            tier = [figures.tier]
            blocks.add_metric(tier, figures.num_blocks)
            used.add_metric(tier, figures.used_bytes)
            hits.add_metric(tier, figures.num_hits)
            evictions.add_metric(tier, figures.num_evictions)
            damaged.add_metric(tier, figures.num_damaged)
        misses = CounterMetricFamily("banyan_kvstore_misses", "Blocks asked for and not here.")
        misses.add_metric([], self._tiers.num_misses)
        uncopied = GaugeMetricFamily(
            "banyan_kvstore_uncopied_blocks", "Blocks that wait to be copied to disk."
        )
        uncopied.add_metric([], self._tiers.num_uncopied)
        yield from (blocks, used, hits, evictions, damaged, misses, uncopied)


class KvStoreMetrics:
    def __init__(self, registry: CollectorRegistry, tiers: Tiers) -> None:
        registry.register(TierCollector(tiers))
        self.rejected_pages = Counter(
            "banyan_kvstore_rejected_pages",
            "Pages whose digest was not that of their data.",
            registry=registry,
        )
        self.refused_puts = Counter(
            "banyan_kvstore_refused_puts",
            "Puts refused because too many bytes were on their way.",
            registry=registry,
        )
        self.indexing = Gauge(
            "banyan_kvstore_indexing", "1 while this store writes the index.", registry=registry
        )
        self.index_lag = Gauge(
            "banyan_kvstore_index_lag_seconds",
            "Age of the newest event folded, when it was folded.",
            registry=registry,
        )
        self.fenced = Counter(
            "banyan_kvstore_fenced",
            "Times that another store had taken over the index.",
            registry=registry,
        )
        self.index_unavailable = Counter(
            "banyan_kvstore_index_unavailable",
            "Failed calls to the index.",
            registry=registry,
        )
        self.stale_producers = Gauge(
            "banyan_kvstore_stale_producers",
            "Producers whose events have a hole that no snapshot has healed yet.",
            registry=registry,
        )
