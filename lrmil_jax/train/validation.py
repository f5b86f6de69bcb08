"""What a MIL head in training says of the validation slides."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lrmil_jax import heads
from lrmil_jax.data.batching import Planned
from lrmil_jax.data.stacked import StackedBatches
from lrmil_jax.train import bags, batches, sharding
from lrmil_jax.train.bags import BagData, BagLoader
from lrmil_jax.train.state import Several
from lrmil_jax.train.training import Metrics

# Validation batches that the host may run ahead of the device.
_IN_FLIGHT = 3


class Validation:
    """Figures per patient on the validation slides; all that chooses a checkpoint.

    Called with the parameters of one head it gives its metrics, with those of several a list.
    `loaders` are those of the streams of several, one of one head.
    """

    def __init__(
        self,
        module: heads.Head,
        loaders: Sequence[BagLoader],
        mesh: Mesh,
        several: Several | None = None,
    ):
        self._data, self._mesh, self._several = [one.data for one in loaders], mesh, several
        task, first = self._data[0].task, loaders[0]

        def values(params, constants, batch):
            instances, batch, where = batches.of_batch(constants, batch)
            output = module.apply({"params": params}, instances, batch["mask"], **where)
            return task.link(output.logits), batch["bag"]

        if several is None:
            self._batches: Planned = first.validation()
            self._constants = first.constants
        else:
            sources = [loader.validation() for loader in loaders]
            self._batches = StackedBatches(sources, budget=first.block["budget"])
            constants = bags.together(loaders)
            self._constants = sharding.replicate(constants, mesh)
            streams = dataclasses.replace(several, by_model=())
            values = streams.over_models(values, ("model", "constants", "stream"))
        copied = sharding.replicated(mesh)
        self._values = jax.jit(values, out_shardings=(copied, copied))

    def __call__(self, params: Any) -> Metrics | list[Metrics]:
        axis = 0 if self._several is None else 1
        outputs: list[tuple[jax.Array, jax.Array]] = []
        for batch in self._batches.dataset():  # made ahead in threads
            placed = sharding.place_batch(batch, self._mesh, axis)
            outputs.append(self._values(params, self._constants, placed))
            # Features of batches that wait would fill the device.
            jax.block_until_ready(outputs[max(len(outputs) - _IN_FLIGHT, 0)])
        rows, places = (
            np.concatenate(part, axis) for part in zip(*jax.device_get(outputs), strict=True)
        )
        if self._several is None:
            return _measured(self._data[0], rows, places)
        data = [one for one in self._data for _ in range(self._several.points)]
        return [_measured(*one) for one in zip(data, rows, places, strict=True)]


def _measured(data: BagData, rows: np.ndarray, places: np.ndarray) -> Metrics:
    """The task's metrics of what a head says of some slides, -1 for none."""
    rows, places = rows[places >= 0], places[places >= 0]
    # Patients in the order of their names, whatever the order of the batches.
    cases = np.array([data.cases[place] for place in places])
    order = np.lexsort((places, cases))
    rows, places, cases = rows[order].astype(np.float64), places[order], cases[order]
    _, first, patient = np.unique(cases, return_index=True, return_inverse=True)
    predicted = data.task.pooled(rows, patient)
    return data.task.measure(data.targets[places[first]], predicted)
