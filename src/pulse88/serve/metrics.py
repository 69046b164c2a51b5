"""What the server counts, in Prometheus' words. One registry a server, so that tests may have several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE = CONTENT_TYPE_LATEST
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # what else is asked makes no series
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
DUET_SECONDS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.5, 1)


class Metrics:
    """All figures of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "pulse88_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "pulse88_request_seconds", "Until the answer began.", ["route"], registry=registry, buckets=SECONDS
        )
        self._works = Counter("pulse88_works", "Works that workers did.", ["kind", "outcome"], registry=registry)
        self._cpu = Counter("pulse88_work_cpu_seconds", "Processor time of works.", ["kind"], registry=registry)
        self._waited = Histogram(
            "pulse88_waited_seconds", "Until a worker took a work.", ["kind"], registry=registry, buckets=SECONDS
        )
        self._first = Histogram(
            "pulse88_first_note_seconds", "From a request to its first note.", registry=registry, buckets=SECONDS
        )
        self._duet = Histogram(
            "pulse88_duet_first_note_seconds",
            "From a noticed pause to the first note.",
            registry=registry,
            buckets=DUET_SECONDS,
        )
        self._notes = Counter("pulse88_notes", "Notes made.", registry=registry)
        self._queued = Gauge("pulse88_queued", "Works that wait for a worker.", registry=registry)
        self._workers = Gauge("pulse88_workers", "Workers that are ready.", registry=registry)
        self._lost = Counter("pulse88_workers_lost", "Workers that died and were replaced.", registry=registry)
        self._held = Gauge("pulse88_held", "What is remembered.", ["what"], registry=registry)
        self._duets = Gauge("pulse88_duets", "Duets under way.", registry=registry)

    def text(self) -> bytes:
        """All of it as Prometheus reads it."""
        return generate_latest(self._registry)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is its pattern, so that ids make no series."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def did(self, kind: str, outcome: str, cpu_seconds: float) -> None:
        """A worker did a work, or refused it."""
        self._works.labels(kind, outcome).inc()
        self._cpu.labels(kind).inc(cpu_seconds)

    def waited(self, kind: str, seconds: float) -> None:
        """A work was taken after so long."""
        self._waited.labels(kind).observe(seconds)

    def first_note(self, seconds: float) -> None:
        """A take's first note came so long after it was asked for."""
        self._first.observe(seconds)

    def duet_note(self, seconds: float) -> None:
        """An answer's first note came so long after the pause."""
        self._duet.observe(seconds)

    def notes(self, count: int = 1) -> None:
        """So many notes were made."""
        self._notes.inc(count)

    def queued(self, count: int) -> None:
        """So many works wait."""
        self._queued.set(count)

    def workers(self, count: int) -> None:
        """So many workers are ready."""
        self._workers.set(count)

    def lost(self) -> None:
        """A worker died."""
        self._lost.inc()

    def duets(self, change: int) -> None:
        """Duets began (1) or ended (-1)."""
        self._duets.inc(change)

    def held(self, what: str, count: float) -> None:
        """So much of something is remembered."""
        self._held.labels(what).set(count)
