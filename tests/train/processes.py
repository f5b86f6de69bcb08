"""One of two processes that train the toy together: `python processes.py PORT INDEX DIRECTORY`."""

import json
import sys

import grain
import jax
import numpy as np
import toy

from lrmil_jax import cluster
from lrmil_jax.train import make_mesh, sharding


def loss_fn(params, constants, batch, key, train):
    """Without dropout, whose mask depends on an example's place in the batch."""
    return toy.loss_fn(params, constants, batch, key, False)


def batches(index, count, size=8):
    """This process's half of every batch."""
    rows = grain.MapDataset.range(toy.EXAMPLES).seed(3).shuffle().repeat(1000)
    rows = rows.map(lambda row: {"row": np.int32(row), "weight": np.float32(1 + row % 3)})
    parts = rows.batch(size // count)[index::count]
    return parts.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def main():
    """Trains with parameters split over the devices of both processes."""
    port, index, directory = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)
    if index != "alone":
        cluster.join(f"127.0.0.1:{port}", 2, int(index), seconds=120)
    sharding.FSDP_MIN_SIZE = 1
    mesh = make_mesh()
    result = toy.train(
        directory,
        mesh=mesh,
        loss=loss_fn,
        data=batches(jax.process_index(), jax.process_count()),
        fsdp=True,
    )
    print(json.dumps({"step": result.step, **result.metrics}), flush=True)
    cluster.finish()
    cluster.leave(0)


if __name__ == "__main__":
    main()
