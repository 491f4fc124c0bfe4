"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The numbers of one server; nothing in them tells of an image or a question."""

    def __init__(self) -> None:
        self._all = CollectorRegistry()
        kept = {"registry": self._all}
        self.requests = Counter("unimed_requests", "Requests for an answer, by status.", ["status"], **kept)
        self.seconds = Histogram("unimed_request_seconds", "From a request's head to its answer's end.", buckets=SECONDS, **kept)
        self.waited = Histogram("unimed_wait_seconds", "From a question that was read to its place in a batch.", buckets=SECONDS, **kept)
        self.waiting = Gauge("unimed_queue_length", "Questions that wait for a place in a batch.", **kept)
        self.inside = Gauge("unimed_requests_in_hand", "Requests received and not yet answered.", **kept)
        self.rows = Histogram("unimed_batch_size", "Answers that got their next word in one pass.", buckets=ROWS, **kept)
        self.words = Counter("unimed_tokens", "Tokens written.", **kept)
        self.model = Gauge("unimed_model_info", "1 for the version that answers.", ["version"], **kept)
        self.loads = Counter("unimed_model_loads", "Versions taken over, and those that could not be.", ["outcome"], **kept)

    def serves(self, version: str) -> None:
        """Name the version that answers from now on."""
        self.model.clear()
        self.model.labels(version).set(1)

    def page(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self._all)
