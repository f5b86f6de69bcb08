"""The step's programs: what an update uses up, and what the compiler is told."""

from unittest import mock

import jax
import jax.numpy as jnp
import optax

from lrmil_jax.train import make_mesh, sharding
from lrmil_jax.train.state import TrainState
from lrmil_jax.train.step import Stepper


def loss_fn(params, constants, batch, key, train):
    del constants, key, train
    return {"loss": ((batch["x"] @ params["w"]) ** 2).sum(-1)}


def test_an_update_uses_up_the_state_before_it():
    mesh, tx = make_mesh(jax.devices()[:1]), optax.adam(1e-2)
    params = {"w": jnp.ones((3, 2))}
    state = TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))
    where = sharding.state_shardings(state, mesh, fsdp=False)
    state = jax.device_put(jax.tree.map(jnp.copy, state), where)
    batch = sharding.place_batch({"x": jnp.ones((4, 3))}, mesh)
    stepper = Stepper(loss_fn, tx, mesh, where)
    summed, _ = stepper.add(state, None, batch, jax.random.key(0), 0, None)
    after, _ = stepper.update(state, summed)
    # Parameters and moments lie where those before lay: the device holds one state, not two.
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_only_gpus_are_told_to_leave_triton_alone():
    devices = mock.Mock(flat=[mock.Mock(platform="gpu")])
    gpus = mock.Mock(spec=jax.sharding.Mesh, devices=devices)
    assert sharding.compiler_options(make_mesh()) == {}
    assert sharding.compiler_options(gpus) == {"xla_gpu_enable_triton_gemm": False}
