"""The pipeline of `beam`: imported, here and by Beam's workers, only where Apache Beam is."""

import contextlib
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.runners.runner import PipelineState

from lrmil_jax import storage
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.workspace.beam import SlideWork


class _Slides(beam.DoFn):
    """Slide after slide, in one process beside the worker's own."""

    def __init__(self, work: SlideWork):
        self._work = work

    def setup(self) -> None:
        self._stack = contextlib.ExitStack()
        self._workers = self._stack.enter_context(self._work.workers())

    def process(self, task: tuple[SlideJob, storage.Record | None]) -> None:
        self._work.do(self._workers, *task)

    def teardown(self) -> None:
        self._stack.close()


def run(
    work: SlideWork, tasks: Sequence[tuple[SlideJob, storage.Record | None]], options: Any
) -> None:
    """Runs the job, and returns when it has ended.

    Args:
      work: of each slide.
      tasks: arguments of `SlideWork.do`.
      options: Beam's.

    Raises:
      RuntimeError: it did not end well; the runner's own exceptions too.
    """
    pipeline = beam.Pipeline(options=options)
    slides = pipeline | "slides" >> beam.Create(tasks)
    # Without it, runners may leave all slides to the one worker that lists them.
    _ = slides | beam.Reshuffle() | "prepare" >> beam.ParDo(_Slides(work))
    result = pipeline.run()
    try:
        result.wait_until_finish()
    except BaseException:  # this run is to stop: so is a job elsewhere
        with contextlib.suppress(Exception):
            result.cancel()
        raise
    if result.state != PipelineState.DONE:
        raise RuntimeError(f"it ended as {result.state}")
