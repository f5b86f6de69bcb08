"""How much memory a device has left, asked of the device itself."""

import jax
from jax.sharding import Mesh

from lrmil_jax import cluster, processes
from lrmil_jax.train import sharding


def free_bytes(mesh: Mesh) -> int:
    """Bytes that every device of a mesh still has for arrays, the least of them.

    A GPU or TPU tells its own limit and use; CPU devices share what the host has to spare.
    """
    free = _own_free_bytes(mesh)
    # What is decided by it must be the same in all processes of the mesh.
    together = cluster.several() and sharding.part(mesh)[1] > 1
    return min(cluster.exchange("free memory", free)) if together else free


def _own_free_bytes(mesh: Mesh) -> int:
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in local]
    if all(stat and "bytes_limit" in stat for stat in stats):
        return min(stat["bytes_limit"] - stat.get("bytes_in_use", 0) for stat in stats)
    return processes.usable_memory()[1] // len(local)
