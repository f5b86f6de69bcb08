"""One trainer for every stage: jitted sharded steps, exact resume, metrics on disk.

The names below are imported when they are asked for: a module that computes steps or encodes
images needs neither Grain nor TensorBoard.
"""

import importlib
from typing import Any

_HOMES = {
    "Evaluator": "step",
    "FitResult": "loop",
    "MetricWriter": "metric_writer",
    "TrainSettings": "state",
    "TrainState": "state",
    "Several": "state",
    "fit": "loop",
    "fit_several": "loop",
    "make_mesh": "sharding",
    "place_batch": "sharding",
    "replicate": "sharding",
    "to_host": "sharding",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lrmil_jax.train.{_HOMES[name]}"), name)
