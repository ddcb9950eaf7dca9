"""The registry of one node and the definition of every metric: `meshnode_<package>_<noun>_<unit>`."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds
_PER_TOKEN = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)  # seconds


class Metrics:
    """All metrics of one node, in a registry of its own, so that two nodes in one process stay apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)

        self.api_requests_total = counter("meshnode_api_requests_total", "HTTP requests answered.", ["route", "status"])

        self.inference_requests_total = counter(
            "meshnode_inference_requests_total", "Generations ended, by outcome.", ["outcome"]
        )
        self.inference_time_to_first_token_seconds = histogram(
            "meshnode_inference_time_to_first_token_seconds", "From admission to the first token.", buckets=_FIRST_TOKEN
        )
        self.inference_time_per_output_token_seconds = histogram(
            "meshnode_inference_time_per_output_token_seconds",
            "Between two tokens of one generation.",
            buckets=_PER_TOKEN,
        )
        self.inference_prompt_tokens_total = counter(
            "meshnode_inference_prompt_tokens_total", "Prompt tokens processed."
        )
        self.inference_completion_tokens_total = counter(
            "meshnode_inference_completion_tokens_total", "Tokens generated."
        )
        self.inference_queue_length = gauge("meshnode_inference_queue_length", "Generations waiting for their turn.")
        self.inference_active_sessions = gauge("meshnode_inference_active_sessions", "Generations being worked on.")

        self.inference_stray_messages_total = counter(
            "meshnode_inference_stray_messages_total",
            "Messages about sessions that are not there, or not the sender's to say; a few follow every loss.",
            ["kind"],
        )

        self.engine_cache_bytes = gauge(
            "meshnode_engine_cache_bytes", "Bytes that KV caches hold now, looked at twice a second."
        )
        self.engine_cache_budget_bytes = gauge(
            "meshnode_engine_cache_budget_bytes", "Bytes that KV caches may hold at most."
        )
        self.engine_weight_bytes = gauge("meshnode_engine_weight_bytes", "Bytes of loaded weights.")
        self.engine_worker_restarts_total = counter(
            "meshnode_engine_worker_restarts_total", "Worker processes started again after they ended."
        )

        self.files_shards_held = gauge("meshnode_files_shards_held", "Verified shards on disk.")
        self.files_shards_bytes = gauge("meshnode_files_shards_bytes", "Bytes of verified shards on disk.")
        self.files_quarantined_total = counter(
            "meshnode_files_quarantined_total", "Shards set aside because their bytes did not match their hash."
        )

        self.network_peers = gauge("meshnode_network_peers", "Peers that can be reached.")
        self.network_messages_total = counter(
            "meshnode_network_messages_total", "Messages received from peers.", ["kind"]
        )
        self.network_refused_total = counter(
            "meshnode_network_refused_total", "Connections of strangers and peers that were refused.", ["code"]
        )
        self.network_stale_records_total = counter(
            "meshnode_network_stale_records_total", "Records too old or from the future: some clock is wrong."
        )
        self.network_wrong_clocks_total = counter(
            "meshnode_network_wrong_clocks_total", "Links to peers whose clock is minutes apart from ours."
        )
        self.network_disputed_names = gauge(
            "meshnode_network_disputed_names", "Names that nodes of the mesh give to models with other weights."
        )
        self.network_evidence_dropped_total = counter(
            "meshnode_network_evidence_dropped_total", "Things held against peers that came too fast to be weighed."
        )
        self.network_misdeeds_total = counter(
            "meshnode_network_misdeeds_total", "Things peers did that no honest peer does.", ["kind"]
        )

        self.supervise_restarts_total = counter(
            "meshnode_supervise_restarts_total", "Subsystems started again after a crash.", ["subsystem"]
        )
        self.supervise_loop_stalls_total = counter(
            "meshnode_supervise_loop_stalls_total", "Steps of the loop that took longer than 50 ms."
        )

    def render(self) -> bytes:
        """Return the Prometheus text exposition (CONTENT_TYPE) of the registry."""
        return generate_latest(self.registry)
