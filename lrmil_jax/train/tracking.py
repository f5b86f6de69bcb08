"""Trainings in MLflow too, where `tracking.mlflow` names its server.

Nothing that it does changes a training: rows are sent by a thread, and its first failure ends that
with one warning.
"""

import contextlib
import dataclasses
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lrmil_jax import __version__, files
from lrmil_jax.errors import one_line

log = logging.getLogger(__name__)

_RUN = "mlflow.json"  # in a training's folder: which run it is
_LAST_SECONDS = 20.0  # that a training waits at its end for its last rows to be sent
_PARAMS = 100  # of one request
# A server that is gone is given up after seconds, not MLflow's own minutes; and it prints nothing.
_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
             "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class Tracking:
    """Where the trainings of a run are told of.

    Attributes:
      uri: of the tracking server or store.
      experiment: its name there.
      params: of every training: the config's keys and their values.
      root: the work directory; the trainings' folders are named from there.
      has_warned: whether a failure was told already.
    """

    uri: str
    experiment: str
    params: Mapping[str, Any]
    root: Path
    has_warned: bool = False


_present: list[Tracking | None] = [None]


@contextlib.contextmanager
def tracked(tracking: Tracking | None) -> Iterator[None]:
    """Tells of the trainings within; None tells nobody."""
    before, _present[0] = _present[0], tracking
    try:
        yield
    finally:
        _present[0] = before


def begin(directory: Path) -> "TrackedRun | None":
    """The run of the training in a folder, or None where trainings are not told of."""
    return None if _present[0] is None else TrackedRun(_present[0], directory)


class TrackedRun:
    """One training as a run of MLflow: the one that its folder names, or a new one. What was sent
    before a kill is not sent again.

    Args:
      tracking: where to.
      directory: of the training.
    """

    def __init__(self, tracking: Tracking, directory: Path):
        self._tracking, self._directory = tracking, directory
        self._rows: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="mlflow", daemon=True)
        self._thread.start()

    def write(self, step: int, row: Mapping[str, float | None]) -> None:
        """Sends a row of metrics without waiting for it; None is undefined."""
        if self._thread.is_alive():
            defined = {name: value for name, value in row.items() if value is not None}
            self._rows.put((step, int(time.time() * 1000), defined))

    def close(self, status: str) -> None:
        """Ends the run as FINISHED, KILLED or FAILED, and waits some seconds for what is to be
        sent."""
        self._rows.put(status)
        self._thread.join(_LAST_SECONDS)
        if self._thread.is_alive():
            self._warn(f"it takes longer than {_LAST_SECONDS:g} s")

    def _send_all(self) -> None:
        try:
            os.environ.update({key: os.environ.get(key, own) for key, own in _SETTINGS.items()})
            from mlflow import MlflowClient

            self._send_to(MlflowClient(self._tracking.uri))
        except Exception as error:  # of a server, a network, a library: no training's concern
            self._warn(one_line(error))

    def _send_to(self, client: Any) -> None:
        from mlflow.entities import Metric

        run_id, sent = self._known_run(client) or (self._new_run(client), {})
        while not isinstance(item := self._rows.get(), str):
            step, at, row = item
            metrics = [Metric(name, value, at, step) for name, value in row.items()
                       if step > sent.get(name, -1)]  # fmt: skip
            if metrics:
                client.log_batch(run_id, metrics=metrics)
        client.set_terminated(run_id, status=item)

    def _known_run(self, client: Any) -> tuple[str, dict[str, int]] | None:
        """The run that the folder names, if it is there, and each metric's last step there."""
        from mlflow.exceptions import MlflowException

        path = self._directory / _RUN
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["uri"] != self._tracking.uri:
            return None
        try:
            run = client.get_run(record["run_id"])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage != "active":  # somebody deleted it
            return None
        client.update_run(run.info.run_id, status="RUNNING")
        sent = {}
        for name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            sent[name] = max(point.step for point in history)
        return run.info.run_id, sent

    def _new_run(self, client: Any) -> str:
        from mlflow.entities import Param

        found = client.get_experiment_by_name(self._tracking.experiment)
        experiment = (
            client.create_experiment(self._tracking.experiment)
            if found is None
            else found.experiment_id
        )
        name = os.path.relpath(self._directory, self._tracking.root)
        tags = {"lrmil_jax.version": __version__, "lrmil_jax.training": name,
                "lrmil_jax.workdir": str(self._tracking.root.resolve())}  # fmt: skip
        run_id = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        params = [Param(key, str(value)[:6000]) for key, value in self._tracking.params.items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(run_id, params=params[start : start + _PARAMS])
        files.write_json(self._directory / _RUN, {"uri": self._tracking.uri, "run_id": run_id})
        return run_id

    def _warn(self, reason: str) -> None:
        if not self._tracking.has_warned:
            self._tracking.has_warned = True
            log.warning(
                "MLflow at %s is not told of everything (%s); trainings go on, and their "
                "metrics.jsonl has it all",
                self._tracking.uri,
                reason,
            )
