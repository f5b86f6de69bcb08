"""What Prometheus reads of the server."""

from collections.abc import Mapping
from typing import Any

import prometheus_client as prometheus
from prometheus_client import Counter, Gauge, Histogram

from lrmil_jax.serve.jobs import STATES, Job, JobStore

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one server, in a registry of their own.

    Args:
      store: whose jobs are counted whenever the metrics are read.
    """

    def __init__(self, store: JobStore):
        self._registry = registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=registry)
        jobs = Gauge("lrmil_jobs", "jobs that are kept, by state", ["state"], registry=registry)
        for state in STATES:
            jobs.labels(state).set_function(lambda state=state: store.counts()[state])
        self._requests = Counter("lrmil_http_requests", "answers, by status",
                                 ["method", "route", "status"], registry=registry)  # fmt: skip
        self._finished = Counter("lrmil_jobs_finished", "jobs done and failed since the start",
                                 ["state"], registry=registry)  # fmt: skip
        for state in ("done", "failed"):
            self._finished.labels(state)
        self._run = Histogram("lrmil_job_seconds", "from beginning with a job to its end",
                              buckets=_SECONDS, registry=registry)  # fmt: skip
        self._waited = Histogram("lrmil_job_wait_seconds", "from a job's coming to its beginning",
                                 buckets=_SECONDS, registry=registry)  # fmt: skip
        self._phases = Counter("lrmil_predict_seconds", "seconds of predictions, by phase",
                               ["phase"], registry=registry)  # fmt: skip
        self._encoded = Counter("lrmil_patches_encoded", "images that went through an encoder",
                                registry=registry)  # fmt: skip
        self._total, self._count = 0.0, 0

    def count_request(self, method: str, route: str, status: int) -> None:
        """Counts an answer."""
        self._requests.labels(method, route, str(status)).inc()

    def count_job(self, job: Job, record: Mapping[str, Any]) -> None:
        """Counts a job that has ended, with the record of its prediction ({} of a failed one)."""
        seconds = job.finished - job.started
        self._total, self._count = self._total + seconds, self._count + 1
        self._finished.labels(job.state).inc()
        self._run.observe(seconds)
        self._waited.observe(job.started - job.created)
        for phase, value in record.get("seconds", {}).items():
            self._phases.labels(phase).inc(value)
        self._encoded.inc(record.get("patches_encoded", 0))

    @property
    def seconds_a_job(self) -> float:
        """Mean over the jobs since the start; 10 before there is one."""
        return self._total / self._count if self._count else 10.0

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return prometheus.generate_latest(self._registry)
