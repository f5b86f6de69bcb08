"""Toy bags on disk: a class shows in a few instances of a bag, as a lesion does in a slide."""

import numpy as np

from lrmil_jax import config as configuration
from lrmil_jax.data import features
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train import mil
from tests.data import records

WIDTH = 6
TASK = Classification(("benign", "tumour"))


def block(**changes):
    """A small training of a head."""
    settings = configuration.bag_training(
        epochs=30, bags=6, budget=64, hidden=8, head="gated_abmil", dropout=0.0, learning_rate=0.05,
        eval_every=5, log_every=5, checkpoint_seconds=0, balance="none", select="auc",
    )  # fmt: skip
    settings.update(changes)
    return settings


def rows_of(rng, *, label, count, hot=3):
    """A bag in which `hot` instances point the way of the label, on an odd scale and offset."""
    values = rng.normal(size=(count, WIDTH))
    values[:hot, 0] = 6.0 * (1 if label else -1)
    values = values * np.array([3.0, 0.1, 1, 1, 1, 5]) + np.array([20.0, 0, 0, -3, 0, 0])
    return features.SlideFeatures(
        embedding=values.astype(np.float32),
        xy=np.zeros((count, 2), np.int32),
        parent=np.arange(count, dtype=np.int32),
        child=np.full(count, -1, np.int32),
        child_mask=np.ones((count, 2, 2), bool),
    )


def write_store(folder, *, bags=20, seed=0, dtype="float16"):
    """A store of bags of 5 to 12 instances with alternating labels."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(bags) % 2).astype(np.int32)
    paths = []
    for number, label in enumerate(labels):
        rows = rows_of(rng, label=label, count=int(rng.integers(5, 13)))
        paths.append(folder / f"s{number}.array_record")
        features.write(paths[-1], paths[-1].stem, rows, dtype=dtype, block=64)
    ids = [path.stem for path in paths]
    store = features.FeatureStore(paths, ids, lambda names: records.parser(rows, names, dtype))
    return store, labels


def data_of(store, labels, *, val=4, teaching=False, cases=None):
    """The last `val` bags validate; `teaching` adds a teacher that knows the hot instances."""
    extras = {}
    if teaching:
        guide = [np.where(np.arange(n) < 3, 1 / 3, 0.0) for n in store.sizes]
        extras = {
            "per_bag": {"teacher_logits": np.eye(2, dtype=np.float32)[labels] * 6 - 3},
            "per_instance": {
                "guide": np.concatenate(guide).astype(np.float32),
                "covered": np.ones(int(store.sizes.sum()), bool),
            },
        }
    places = np.arange(len(labels))
    return mil.BagData(
        store=store,
        targets=labels[:, None].astype(np.float32),
        task=TASK,
        cases=cases or [f"p{i}" for i in places],
        train=places[:-val],
        val=places[-val:],
        **extras,
    )
