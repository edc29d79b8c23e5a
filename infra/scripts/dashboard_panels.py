"""What the dashboard shows: rows of panels, a panel of PromQL queries.

Figures of requests are those of the gateways, figures of sequences and blocks those of the workers.
"""

from __future__ import annotations

from dataclasses import dataclass

GATEWAY = 'job="gateway", model_name=~"$model"'
WORKER = 'job=~"prefill|decode", model_name=~"$model"'


@dataclass(frozen=True)
class Panel:
    """A graph. `queries` are pairs of PromQL and legend."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    text: str = ""


def quantiles(name: str) -> tuple[tuple[str, str], ...]:
    rate = f"sum by (le) (rate({name}_bucket{{{GATEWAY}}}[$__rate_interval]))"
    return tuple(
        (f"histogram_quantile({share}, {rate})", f"p{share * 100:g}") for share in (0.5, 0.9, 0.99)
    )


def per_second(name: str, labels: str, by: str = "") -> str:
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({name}{{{labels}}}[$__rate_interval]))"


def ratio(part: str, whole: str, labels: str) -> str:
    return f"{per_second(part, labels)} / {per_second(whole, labels)}"


def mean(phase: str) -> tuple[str, str]:
    name = f"vllm:request_{phase}_time_seconds"
    return ratio(f"{name}_sum", f"{name}_count", GATEWAY), phase


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "What clients see",
        (
            Panel(
                "Time to first token",
                "s",
                quantiles("vllm:time_to_first_token_seconds"),
                "Request received by the gateway to its first token written.",
            ),
            Panel(
                "Gap between tokens",
                "s",
                quantiles("vllm:inter_token_latency_seconds"),
                "Between consecutive tokens of an answer, at the gateway.",
            ),
            Panel("Whole request", "s", quantiles("vllm:e2e_request_latency_seconds")),
            Panel(
                "Goodput",
                "reqps",
                (
                    ("sum(banyan_goodput_requests_per_second)", "met all targets"),
                    (per_second("vllm:request_success_total", GATEWAY), "ended"),
                ),
                "Requests that met all their targets, five minutes' mean, beside all that ended.",
            ),
            Panel(
                "SLO attainment",
                "percentunit",
                (("banyan_slo_attainment_ratio", "{{model_name}} {{tenant}}"),),
            ),
            Panel(
                "Ends",
                "reqps",
                (
                    (
                        per_second("vllm:request_success_total", GATEWAY, "finished_reason"),
                        "{{finished_reason}}",
                    ),
                ),
                "abort: the client left. error: failed or shed.",
            ),
        ),
    ),
    (
        "Where time goes, and who waits",
        (
            Panel("Time per request", "s", tuple(map(mean, ("queue", "prefill", "decode")))),
            Panel(
                "Requests",
                "short",
                (
                    (f"sum(vllm:num_requests_running{{{GATEWAY}}})", "running"),
                    (f"sum(vllm:num_requests_waiting{{{GATEWAY}}})", "waiting"),
                ),
            ),
            Panel(
                "Shed",
                "reqps",
                ((per_second("banyan_gateway_shed_requests_total", "", "reason"), "{{reason}}"),),
            ),
            Panel(
                "Expected wait",
                "s",
                (
                    (
                        "max(banyan_gateway_queue_expected_wait_seconds)",
                        "of a request that comes now",
                    ),
                ),
            ),
            Panel(
                "Recoveries",
                "ops",
                ((per_second("banyan_request_recoveries_total", ""), "work placed again"),),
                "After the loss of a worker.",
            ),
            Panel(
                "Retry budget",
                "short",
                (("min(banyan_gateway_retry_budget_requests)", "retries left"),),
            ),
            Panel(
                "Placements",
                "ops",
                ((per_second("banyan_router_placements_total", "", "outcome"), "{{outcome}}"),),
            ),
        ),
    ),
    (
        "Workers and KV",
        (
            Panel(
                "Sequences",
                "short",
                (
                    (f"vllm:num_requests_running{{{WORKER}}}", "{{engine}} running"),
                    (f"vllm:num_requests_waiting{{{WORKER}}}", "{{engine}} waiting"),
                ),
            ),
            Panel(
                "KV blocks in use",
                "percentunit",
                ((f"vllm:kv_cache_usage_perc{{{WORKER}}}", "{{engine}}"),),
            ),
            Panel(
                "Cache hits",
                "percentunit",
                (
                    (
                        ratio(
                            "vllm:prefix_cache_hits_total",
                            "vllm:prefix_cache_queries_total",
                            WORKER,
                        ),
                        "of tokens looked up in a worker",
                    ),
                    (
                        ratio(
                            "vllm:external_prefix_cache_hits_total",
                            "vllm:external_prefix_cache_queries_total",
                            WORKER,
                        ),
                        "of tokens looked for at others",
                    ),
                ),
            ),
            Panel(
                "Tokens",
                "short",
                (
                    (per_second("vllm:prompt_tokens_total", WORKER, "engine"), "{{engine}} prompt"),
                    (
                        per_second("vllm:generation_tokens_total", WORKER, "engine"),
                        "{{engine}} output",
                    ),
                ),
                "A second.",
            ),
            Panel(
                "KV on the wire",
                "Bps",
                (
                    (
                        per_second("banyan_worker_fetched_bytes_total", WORKER, "engine"),
                        "{{engine}} fetched",
                    ),
                    (
                        per_second("banyan_worker_exported_bytes_total", WORKER, "engine"),
                        "{{engine}} exported",
                    ),
                ),
            ),
            Panel(
                "Trouble with KV",
                "ops",
                (
                    (per_second("banyan_worker_failed_pulls_total", WORKER), "pulls broke"),
                    (per_second("banyan_worker_rejected_pages_total", WORKER), "pages rejected"),
                    (per_second("vllm:num_preemptions_total", WORKER), "preemptions"),
                    (per_second("banyan_worker_expired_leases_total", WORKER), "leases expired"),
                ),
            ),
        ),
    ),
    (
        "Around it",
        (
            Panel("Store", "bytes", (("sum by (tier) (banyan_kvstore_used_bytes)", "{{tier}}"),)),
            Panel(
                "Workers",
                "short",
                (
                    ("max by (role) (banyan_router_workers_live)", "{{role}} live"),
                    ("max by (role) (banyan_autoscaler_wanted_replicas)", "{{role}} wanted"),
                ),
            ),
            Panel(
                "What was not heard",
                "short",
                (
                    (
                        per_second("banyan_events_missing_total", "", "topic"),
                        "{{topic}} events lost",
                    ),
                    (per_second("banyan_router_index_unavailable_total", ""), "index away"),
                ),
            ),
        ),
    ),
)
