"""The one place that decides where arrays live: mesh, batches, constants, parameters.

The mesh has one axis, "data". Batches are split over it, constants copied to every device,
parameters copied or, with FSDP, split along one of their own axes.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lrmil_jax import cluster

AXIS = "data"
# Splitting a leaf smaller than this (elements) costs more in messages than it saves in memory.
FSDP_MIN_SIZE = 4096


def make_mesh(devices: list | None = None) -> Mesh:
    """A 1-D mesh over `devices` (default: all of all processes that work together now).

    Axis types are Auto: under JAX's default, Explicit, Flax's dropout and plain gathers fail.
    """
    if devices is None:
        devices = jax.local_devices() if cluster.is_apart() else jax.devices()
    if len({device.process_index for device in devices}) > 1:
        # Those of a process side by side, so that its part of a batch is one piece.
        devices = sorted(devices, key=lambda device: (device.process_index, device.id))
        return Mesh(np.array(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    return jax.make_mesh(
        (len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices
    )


def local_mesh() -> Mesh:
    """A mesh over this process's own devices, for what it computes of its own slides."""
    return make_mesh(jax.local_devices())


def part(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which part of every batch is this process's, of as many as the mesh has
    processes."""
    numbers = sorted({device.process_index for device in mesh.devices.flat})
    return numbers.index(jax.process_index()), len(numbers)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """One axis, the first, is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def state_shardings(abstract: Any, mesh: Mesh, *, fsdp: bool) -> Any:
    """One sharding per leaf of `abstract` (a tree of shapes), by its shape alone.

    The rule sees no names, so an optimiser's moments lie exactly as the parameters that they
    belong to.
    """

    def rule(leaf) -> NamedSharding:
        axes = [axis for axis, size in enumerate(np.shape(leaf)) if size % mesh.size == 0]
        if not fsdp or not axes or np.size(leaf) < FSDP_MIN_SIZE:
            return replicated(mesh)
        spec: list[str | None] = [None] * np.ndim(leaf)
        spec[max(axes, key=lambda axis: leaf.shape[axis])] = AXIS
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, abstract)


def compiler_options(mesh: Mesh) -> dict[str, Any]:
    """What `jax.jit` tells the compiler of a program for these devices.

    On GPUs, XLA would otherwise try Triton's matmuls against cuBLAS's. cuBLAS wins for all of the
    encoders', but the trial takes half of the compilation, and biases and residuals that were cut
    out for it no longer go into the matmul: 39 instead of 42 % of an H200's peak for ViT-B/16.
    """
    gpu = all(device.platform == "gpu" for device in mesh.devices.flat)
    return {"xla_gpu_enable_triton_gemm": False} if gpu else {}


def _local_devices(mesh: Mesh) -> int:
    return sum(device.process_index == jax.process_index() for device in mesh.devices.flat)


def pad_batch(batch: dict[str, Any], multiple: int, axis: int = 0) -> dict[str, Any]:
    """Fills every leaf with zeros along an axis up to a multiple; the filling weighs 0.

    A batch without "weight" gets weight 1 for each of its examples.
    """
    shape = np.shape(next(iter(jax.tree.leaves(batch))))[: axis + 1]
    batch = {"weight": np.ones(shape, np.float32), **batch}
    missing = -shape[axis] % multiple
    if not missing:
        return batch

    def pad(leaf):
        return np.pad(leaf, [(0, missing * (one == axis)) for one in range(np.ndim(leaf))])

    return jax.tree.map(pad, batch)


def place_batch(batch: dict[str, Any], mesh: Mesh, axis: int = 0) -> dict[str, Any]:
    """Puts this process's part of a batch on its devices, split along one axis.

    Args:
      batch: numpy leaves [B, ...]; with several processes each gives its own B examples, and B
        is the same in all of them. Leaves [T, ...] under "instances" are split along T, which is
        a multiple of the devices.
      mesh: from `make_mesh`.
      axis: that of the examples: 1 behind an axis of models.

    Returns:
      Global arrays [processes * B', ...], B' being B filled up to a multiple of the local
      devices with examples of weight 0.
    """
    own = {name: leaf for name, leaf in batch.items() if name != "instances"}
    batch = {**batch, **pad_batch(own, _local_devices(mesh), axis)}
    target = batch_sharding(mesh, axis)
    if part(mesh)[1] == 1:
        return jax.device_put(batch, target)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(target, np.asarray(leaf)), batch
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every leaf to every device; what lies there already stays where it is."""
    return place_params(tree, mesh, fsdp=False)


def place_params(tree: Any, mesh: Mesh, *, fsdp: bool) -> Any:
    """Copies every leaf to every device or, with FSDP, splits the large ones over them.

    Args:
      tree: arrays, the same on every process.
      mesh: from `make_mesh`.
      fsdp: see `state_shardings`.
    """

    def put(leaf, target):
        if isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(target, leaf.ndim):
            return leaf
        if part(mesh)[1] == 1:
            return jax.device_put(leaf, target)
        # device_put would ask for the same value on every process.
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, target, lambda index: whole[index])

    return jax.tree.map(put, tree, state_shardings(tree, mesh, fsdp=fsdp))


def to_host(tree: Any, mesh: Mesh) -> Any:
    """Whole numpy copies of a tree of (possibly split) arrays, on every process."""
    whole = jax.jit(lambda leaves: leaves, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: np.array(leaf.addressable_data(0)), whole)
