"""One trainer for every stage: jitted sharded steps, exact resume, metrics and progress."""

from lrmil_jax.files import atomic_path, disk_errors, write_json
from lrmil_jax.train.logging import MetricWriter, progress, setup_logging
from lrmil_jax.train.loop import FitResult, fit
from lrmil_jax.train.sharding import make_mesh, place_batch, replicate, to_host
from lrmil_jax.train.state import TrainSettings, TrainState
from lrmil_jax.train.step import Evaluator

__all__ = [
    "Evaluator",
    "FitResult",
    "MetricWriter",
    "TrainSettings",
    "TrainState",
    "atomic_path",
    "disk_errors",
    "fit",
    "make_mesh",
    "place_batch",
    "progress",
    "replicate",
    "setup_logging",
    "to_host",
    "write_json",
]
