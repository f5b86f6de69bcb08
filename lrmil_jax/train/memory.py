"""How much memory a device has left, asked of the device itself."""

from pathlib import Path

import jax
import psutil
from jax.sharding import Mesh

# Where a container says how much memory it may use, and how much it uses; cgroups 2 and 1.
_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)


def free_bytes(mesh: Mesh) -> int:
    """Bytes that every device of this process still has for arrays, the least of them.

    A GPU or TPU tells its own limit and use; CPU devices share what the host has to spare.
    """
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    stats = [device.memory_stats() for device in local]
    if all(stat and "bytes_limit" in stat for stat in stats):
        return min(stat["bytes_limit"] - stat.get("bytes_in_use", 0) for stat in stats)
    return host_bytes() // len(local)


def host_bytes() -> int:
    """Bytes that the host has to spare, within its container's limit."""
    spare = [psutil.virtual_memory().available]
    for limit, used in _CONTAINER:
        try:
            spare.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such container, or one without a limit ("max")
            continue
    return max(min(spare), 0)
