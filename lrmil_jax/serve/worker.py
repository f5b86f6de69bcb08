"""The one thread that predicts: the model stays loaded, and job after job is done."""

import logging
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lrmil_jax.errors import UserError, one_line
from lrmil_jax.serve.jobs import DONE, FAILED, Job, JobStore
from lrmil_jax.serve.metrics import Metrics

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0


@runtime_checkable
class Predictor(Protocol):
    """A loaded model.

    Attributes:
      facts: what it is, as JSON has it.
    """

    facts: dict[str, Any]

    def predict(self, job: Job, folder: Path, on_progress: Callable[[int, int], None]) -> dict:
        """Writes the slide's prediction below the folder, whole or not at all, and gives its
        record; `on_progress` is told of the regions read and of all of them.

        Raises:
          UserError: the slide cannot be predicted.
        """


class Worker:
    """Predicts queued jobs in a thread of its own.

    Args:
      store: of the jobs.
      load: gives the model, loaded in that thread.
      keep_seconds: after which jobs that have ended are forgotten.
      metrics: are told of every job.

    Attributes:
      predictor: the model, once it is loaded.
      failure: why the thread has ended, if it should not have.
    """

    def __init__(
        self,
        store: JobStore,
        load: Callable[[], AbstractContextManager[Predictor]],
        *,
        keep_seconds: float | int,
        metrics: Metrics,
    ):
        self._store, self._load, self._keep, self._metrics = store, load, keep_seconds, metrics
        self._ended: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="predicting", daemon=True)
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._current: str | None = None
        self._progress = (0, 0)
        self.predictor: Predictor | None = None
        self.failure: str | None = None

    def start(self, ended: Callable[[], None] = lambda: None) -> None:
        """Begins with loading the model; `ended` is called when the thread ends."""
        self._ended = ended
        self._thread.start()

    def wake(self) -> None:
        """Says that a job is there."""
        self._wake.set()

    def ask_to_stop(self) -> None:
        """Lets the thread begin with no other job."""
        self._stopping.set()
        self._wake.set()

    def stop(self, seconds: float | int) -> bool:
        """Waits until the thread has ended, with its job done; False if that takes longer: the job
        then waits again, and the process is to be ended."""
        self.ask_to_stop()
        self._thread.join(max(0.0, seconds))
        if not self._thread.is_alive():
            return True
        job_id = self._current
        if job_id is not None and self._store.put_back(job_id):
            log.info("job %s is put back: it was not done within the time to stop", job_id)
        return False

    @property
    def is_stopping(self) -> bool:
        """Whether no other job will be begun."""
        return self._stopping.is_set()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread.is_alive()

    def progress(self, job: Job) -> tuple[int, int]:
        """Regions read of a job's slide, and all of them; 0 of 0 before they are known."""
        return self._progress if self._current == job.id else (job.regions, job.regions)

    def _run(self) -> None:
        try:
            with self._load() as predictor:
                self.predictor = predictor
                self._work(predictor)
        except UserError as error:
            self.failure = str(error)
        except Exception as error:
            log.exception("the server cannot go on")
            self.failure = f"{type(error).__name__}: {one_line(error)}"
        finally:
            self._ended()

    def _work(self, predictor: Predictor) -> None:
        while not self._stopping.is_set():
            self._wake.clear()  # before looking, so that no job is overlooked
            self._store.forget_older(self._keep)
            job = self._store.begin_next()
            if job is None:
                self._wake.wait(_SWEEP_SECONDS)
            else:
                self._do(predictor, job)

    def _do(self, predictor: Predictor, job: Job) -> None:
        self._progress, self._current = (0, 0), job.id
        state, reason, record = DONE, "", {}
        home = self._store.home(job.id)
        try:
            record = predictor.predict(job, home / "result", self._tell)
        except UserError as error:
            state, reason = FAILED, str(error)
        except Exception as error:  # one slide's surprise must not stop the others
            log.exception("job %s", job.id)
            state, reason = FAILED, f"{job.slide_id}: {type(error).__name__}: {one_line(error)}"
        regions = self._progress[1] if state == DONE else 0
        reason = reason.replace(job.path, Path(job.path).name)  # which is the server's own concern
        if self._store.finish(job.id, state, reason=reason, regions=regions):
            self._metrics.count_job(self._store.get(job.id), record)
            log.info("job %s: %s %s", job.id, job.slide_id, reason or state)
            shutil.rmtree(home / "slide", ignore_errors=True)  # the upload is not needed again
        self._current = None

    def _tell(self, done: int, total: int) -> None:
        self._progress = (done, total)
