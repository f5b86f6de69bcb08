"""One of two processes that train the toy together: `python processes.py PORT INDEX DIRECTORY
[CALLS]`, which ends in the middle of its training after so many calls of `validate`."""

import json
import os
import sys

import grain
import jax
import numpy as np
import toy

from lrmil_jax import cluster
from lrmil_jax.train import make_mesh, sharding
from lrmil_jax.train.checkpoint import Checkpoints


def loss_fn(params, constants, batch, key, train):
    """Without dropout, whose mask depends on an example's place in the batch."""
    return toy.loss_fn(params, constants, batch, key, False)


def batches(index, count, size=8):
    """This process's half of every batch."""
    rows = grain.MapDataset.range(toy.EXAMPLES).seed(3).shuffle().repeat(1000)
    rows = rows.map(lambda row: {"row": np.int32(row), "weight": np.float32(1 + row % 3)})
    parts = rows.batch(size // count)[index::count]
    return parts.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def on_devices(state):
    """Bytes of the arrays that are split, and those of them that each device here holds."""
    split = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
    held = dict.fromkeys((device.id for device in jax.local_devices()), 0)
    for shard in (shard for leaf in split for shard in leaf.addressable_shards):
        held[shard.device.id] += shard.data.nbytes
    return {"split": sum(leaf.nbytes for leaf in split), "held": list(held.values())}


def ending_after(calls, mesh):
    """A `validate` at whose next call all processes end at once."""
    validate, left = toy.validation(mesh), iter(range(calls))

    def wrapped(params):
        if next(left, None) is None:
            jax.block_until_ready(params)
            cluster.meet("the end")
            os._exit(1)
        return validate(params)

    return wrapped


def main():
    """Trains with parameters split over the devices of both processes."""
    port, index, directory, *calls = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    if index != "alone":
        cluster.join(f"127.0.0.1:{port}", 2, int(index), seconds=120)
    sharding.FSDP_MIN_SIZE = 1
    mesh, save, states = make_mesh(), Checkpoints.save, []

    def noted(self, state, *arguments, **options):
        states.append(on_devices(state))
        save(self, state, *arguments, **options)

    Checkpoints.save = noted
    result = toy.train(
        directory,
        mesh=mesh,
        loss=loss_fn,
        data=batches(jax.process_index(), jax.process_count()),
        validate=ending_after(int(calls[0]), mesh) if calls else None,
        fsdp=True,
    )
    said = {"step": result.step, **result.metrics, "bytes": states[-1], "saved": len(states)}
    print(json.dumps(said), flush=True)
    cluster.finish()
    cluster.leave(0)


if __name__ == "__main__":
    main()
