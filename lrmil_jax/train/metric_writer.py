"""Metrics of a training as it goes: TensorBoard scalars, metrics.jsonl and, if wanted, MLflow."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import tensorboardX.event_file_writer
import tensorboardX.summary
from tensorboardX.proto import event_pb2

from lrmil_jax.cluster.stopping import StoppedError
from lrmil_jax.files import atomic_path, disk_errors
from lrmil_jax.train import tracking


def _plain(value: Any) -> float | None:
    """A metric as JSON can hold it: undefined (None, NaN, infinite) is null."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def _event(**fields: Any) -> event_pb2.Event:
    return event_pb2.Event(wall_time=time.time(), **fields)


def _open_board(directory: Path, *, purge_step: int) -> tensorboardX.event_file_writer.EventsWriter:
    """An event file that TensorBoard reads; it forgets older points from `purge_step` on.

    tensorboardX's SummaryWriter would write from a thread of its own, where a full disk ends in
    tracebacks that nobody can catch.
    """
    directory.mkdir(exist_ok=True)
    board = tensorboardX.event_file_writer.EventsWriter(
        str(directory / "events"), filename_suffix=f".{os.getpid()}.{time.monotonic_ns()}"
    )
    restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    board.write_event(_event(step=purge_step, session_log=restart))
    return board


class MetricWriter:
    """Scalars to `metrics.jsonl` (one line a call) and to TensorBoard, in `directory`, and to
    MLflow within `tracking.tracked`.

    Args:
      directory: made if it is not there.
      resume_step: rows after this step, left by a run that was killed, are taken away, so that
        a resumed run writes the file that an uninterrupted one would have written.
    """

    def __init__(self, directory: Path | str, *, resume_step: int = 0):
        directory = Path(directory)
        self._path = directory / "metrics.jsonl"
        with disk_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._truncate(resume_step)
            self._lines = self._path.open("a", encoding="utf-8")
            self._board = _open_board(directory / "tensorboard", purge_step=resume_step + 1)
        self._run = tracking.begin(directory)

    def _truncate(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] > step:
                    break
            except (json.JSONDecodeError, KeyError):  # the line at which the run was killed
                break
            kept.append(line + "\n")
        with atomic_path(self._path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Writes one row; names like "train/loss" group in TensorBoard; None is undefined."""
        row = {name: _plain(value) for name, value in metrics.items()}
        with disk_errors(self._path.parent):
            self._lines.write(json.dumps({"step": step, **row}) + "\n")
            self._lines.flush()
            for name, value in row.items():
                if value is not None:
                    scalar = tensorboardX.summary.scalar(name, value)
                    self._board.write_event(_event(step=step, summary=scalar))
        if self._run is not None:
            self._run.write(step, row)

    def flush(self) -> None:
        """Brings all rows to the disk; due before a checkpoint that covers them."""
        with disk_errors(self._path.parent):
            self._board.flush()

    def close(self, status: str = "FINISHED") -> None:
        """Writes out what is still held back; `status` is what MLflow calls the training's end."""
        if self._run is not None:
            self._run.close(status)
        with disk_errors(self._path.parent):
            try:
                self._lines.close()
            finally:
                self._board.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            stopped = issubclass(kind, StoppedError | KeyboardInterrupt)
            self.close("KILLED" if stopped else "FAILED")
