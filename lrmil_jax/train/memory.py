"""How much memory a device has left, asked of the device itself."""

import jax
from jax.sharding import Mesh

from lrmil_jax import processes


def free_bytes(mesh: Mesh) -> int:
    """Bytes that every device of this process still has for arrays, the least of them.

    A GPU or TPU tells its own limit and use; CPU devices share what the host has to spare.
    """
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in local]
    if all(stat and "bytes_limit" in stat for stat in stats):
        return min(stat["bytes_limit"] - stat.get("bytes_in_use", 0) for stat in stats)
    return processes.usable_memory()[1] // len(local)
