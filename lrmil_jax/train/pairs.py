"""Training on pairs across scales: LR tiles beside the features of their HR children. Stage 1 of
LRMIL and the alignment of WISE-FUSE are this one function with other losses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax.patches import beside
from lrmil_jax.patches.pairs import PatchPairs
from lrmil_jax.processes import Workers
from lrmil_jax.train import mil, sharding
from lrmil_jax.train.checkpoint import FitResult
from lrmil_jax.train.loop import fit
from lrmil_jax.train.step import Evaluator, LossFn


def fit_pairs(
    *,
    name: str,
    directory: Path,
    block: ConfigDict,
    params: Any,
    loss_fn: LossFn,
    constants: Any,
    train: PatchPairs,
    val: PatchPairs,
    threads: int,
    workers: int,
    seed: int,
) -> FitResult:
    """Trains on shuffled pairs; the checkpoint with the lowest loss on held-out ones is chosen.

    Args:
      name: for progress and messages.
      directory: of this training alone; a call after a kill goes on there.
      block: config block with steps, batch, rhythm and optimisation (`config.distill`, `.align`).
      params: to begin with.
      loss_fn: of a batch of `PatchPairs`.
      constants: what the loss takes beside.
      train: pairs to learn from; val: those held out.
      threads: examples decoded at once in this process.
      workers: processes that make examples; see `beside.processes`.
      seed: of the order and the flips.
    """
    evaluator = Evaluator(loss_fn, constants=constants)
    part = sharding.part(sharding.make_mesh())
    held_out = val.sample(batch=block.batch, most=block.val_patches, part=part)
    count = beside.processes(workers)
    with Workers(count, label=name, key="encoder.workers", held=train) as makers:
        return fit(
            name=name,
            directory=directory,
            params=params,
            loss_fn=loss_fn,
            batches=train.batches(
                batch=block.batch,
                seed=seed,
                steps=block.steps * block.accumulate,
                threads=threads,
                flips=block.flips,
                stain_jitter=block.stain_jitter,
                makers=makers,
                part=part,
            ),
            validate=lambda params: evaluator(params, held_out),
            settings=mil.train_settings(block, steps=block.steps, accumulate=block.accumulate),
            constants=constants,
            seed=seed,
        )


def drawn(block: Mapping[str, Any] | ConfigDict) -> int:
    """Examples that a training takes, one after another."""
    return block["steps"] * block["accumulate"] * block["batch"]
