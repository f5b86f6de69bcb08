"""A server whose model is a stand-in: it holds each slide until it is let go."""

import contextlib
import dataclasses
import json
import threading
import time

from lrmil_jax.errors import SlideError
from lrmil_jax.serve.jobs import JobStore
from lrmil_jax.serve.metrics import Metrics
from lrmil_jax.serve.worker import Worker

ENDED = ("done", "failed", "cancelled")


@dataclasses.dataclass
class StandIn:
    """Predicts what a slide's bytes say; see `serve.worker.Predictor`."""

    facts: dict = dataclasses.field(default_factory=lambda: {"method": "lrmil"})
    go: threading.Event = dataclasses.field(default_factory=threading.Event)
    seen: list = dataclasses.field(default_factory=list)

    def predict(self, job, folder, on_progress):
        on_progress(1, 4)
        self.seen.append(job.slide_id)
        assert self.go.wait(20)
        with open(job.path, "rb") as file:
            content = file.read()
        if content == b"bad":
            raise SlideError(f"{job.path}: no slide")
        if content == b"odd":
            raise ZeroDivisionError("odd")
        on_progress(4, 4)
        (folder / job.slide_id).mkdir(parents=True)
        record = {"slide_id": job.slide_id, "mpp": job.mpp, "seconds": {"read": 0.5},
                  "patches_encoded": 4, "said": content.decode()}  # fmt: skip
        (folder / job.slide_id / "prediction.json").write_text(json.dumps(record))
        (folder / job.slide_id / "attention.geojson").write_text('{"features": []}')
        return record


class Serving:
    """Store, worker and metrics around a stand-in; `start` begins to predict."""

    def __init__(self, folder, limit=3, keep_seconds=3600.0):
        self.model = StandIn()
        self.store = JobStore(folder, limit=limit)
        self.metrics = Metrics(self.store)
        self.worker = Worker(
            self.store,
            lambda: contextlib.nullcontext(self.model),
            keep_seconds=keep_seconds,
            metrics=self.metrics,
        )

    def close(self):
        self.model.go.set()
        if self.worker.is_alive:
            assert self.worker.stop(20)
        self.store.close()


def wait_for(found, seconds=20):
    """The first value that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError("it does not come")
