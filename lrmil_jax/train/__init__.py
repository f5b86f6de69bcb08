"""One trainer for every stage: jitted sharded steps, exact resume, metrics on disk."""

from lrmil_jax.train.loop import FitResult, fit
from lrmil_jax.train.metric_writer import MetricWriter
from lrmil_jax.train.sharding import make_mesh, place_batch, replicate, to_host
from lrmil_jax.train.state import TrainSettings, TrainState
from lrmil_jax.train.step import Evaluator

__all__ = [
    "Evaluator",
    "FitResult",
    "MetricWriter",
    "TrainSettings",
    "TrainState",
    "fit",
    "make_mesh",
    "place_batch",
    "replicate",
    "to_host",
]
