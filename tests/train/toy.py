"""A tiny classifier that the trainer's tests train; also run as a script, to be killed.

Run as `python toy.py STEPS SECONDS_PER_EVALUATION DIRECTORY...`.
"""

import sys
import time

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from lrmil_jax.train import Evaluator, TrainSettings, fit, make_mesh

EXAMPLES, WIDTH = 40, 16


class Net(nn.Module):
    """Two layers with dropout between them."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(2)(nn.Dropout(0.25, deterministic=not train)(x))


def bank():
    """Examples and labels: what a feature bank is for the real stages."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(EXAMPLES, WIDTH)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] + 0.3 * rng.normal(size=EXAMPLES) > 0).astype(np.int32)}


def init_params():
    """The same start for every test."""
    return Net().init(jax.random.key(1), jnp.zeros((1, WIDTH)), train=False)["params"]


def loss_fn(params, constants, batch, key, train):
    """Cross-entropy [B], and whether the guess is right."""
    logits = Net().apply(
        {"params": params}, constants["x"][batch["row"]], train=train, rngs={"dropout": key}
    )
    labels = constants["y"][batch["row"]]
    log_p = jax.nn.log_softmax(logits)
    return {
        "loss": -jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0],
        "accuracy": (logits.argmax(-1) == labels).astype(jnp.float32),
    }


def batches(size=5, num_threads=2):
    """Endless shuffled batches; 5 does not divide the devices, so filling happens."""
    return (
        grain.MapDataset.range(EXAMPLES)
        .seed(3)
        .shuffle()
        .repeat(1000)
        .map(lambda row: {"row": np.int32(row), "weight": np.float32(1 + row % 3)})
        .batch(size)
        .to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4))
    )


class Unsaved(grain.DatasetIterator):
    """Batches of any iterator, as a Grain iterator without a state worth keeping."""

    def __init__(self, items):
        super().__init__()
        self._items = items

    def __next__(self):
        return next(self._items)

    def get_state(self):
        return {}

    def set_state(self, state):
        del state


def validation(mesh=None):
    """`validate` over all examples."""
    evaluate = Evaluator(loss_fn, constants=bank(), mesh=mesh)
    return lambda params: evaluate(params, [{"row": np.arange(EXAMPLES, dtype=np.int32)}])


def train(directory, *, mesh=None, validate=None, loss=loss_fn, data=None, **settings):
    """A short training with everything that a stage uses."""
    defaults = {"steps": 24, "learning_rate": 0.02, "eval_every": 4, "log_every": 3}
    return fit(
        name="toy",
        directory=directory,
        params=init_params(),
        loss_fn=loss,
        batches=batches() if data is None else data,
        validate=validation(mesh) if validate is None else validate,
        settings=TrainSettings(**{**defaults, **settings}),
        constants=bank(),
        mesh=mesh,
        seed=7,
    )


def main():
    """Trains in each directory, slowly enough to be killed somewhere in the middle."""
    steps, pause, directories = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    mesh = make_mesh(jax.devices()[:1])
    validate = validation(mesh)

    def slow(params):
        time.sleep(pause)
        return validate(params)

    for directory in directories:
        train(directory, mesh=mesh, validate=slow, steps=steps, eval_every=2)


if __name__ == "__main__":
    main()
