"""MIL on bags of patch features: teacher, student and baselines are this one function.

What differs between them is which of the slide-level loss terms have a weight above 0.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from lrmil_jax import heads
from lrmil_jax.errors import ConfigError
from lrmil_jax.progress import progress
from lrmil_jax.tasks import Task
from lrmil_jax.train import bags, batches, sharding
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.bags import BagData
from lrmil_jax.train.checkpoint import FitResult
from lrmil_jax.train.joint import Joint
from lrmil_jax.train.loop import fit
from lrmil_jax.train.slide_loss import SlideLoss
from lrmil_jax.train.state import TrainSettings
from lrmil_jax.train.step import LossFn
from lrmil_jax.train.validation import Validation


def train_settings(
    block: Mapping[str, Any] | ConfigDict,
    *,
    steps: int,
    select: tuple[tuple[str, str], ...] = (("loss", "min"),),
    epoch: int = 1,
    **options: Any,
) -> TrainSettings:
    """The trainer's settings from a config block (`config.training`); 0 switches things off.

    Args:
      block: its rhythm is in steps, or in epochs where it has `epochs`.
      steps: updates in all.
      select: see `TrainSettings`.
      epoch: steps of an epoch, for such a block.
      options: further settings.
    """
    # Patience is in the block's own unit; the trainer counts evaluations.
    patience = (
        -(-block["patience"] // block["eval_every"]) if "epochs" in block else block["patience"]
    )
    return TrainSettings(
        steps=steps,
        learning_rate=block["learning_rate"],
        warmup_steps=min(block["warmup_steps"], steps),
        schedule=block["schedule"],
        weight_decay=block["weight_decay"],
        clip_norm=block["clip_norm"] or None,
        eval_every=block["eval_every"] * epoch,
        log_every=block["log_every"] * epoch,
        checkpoint_seconds=block["checkpoint_seconds"],
        patience=patience or None,
        select=select,
        fsdp=block["fsdp"],
        optimizer=block["optimizer"],
        layer_decay=block.get("layer_decay", 1.0),
        **options,
    )


def train_head(
    *,
    name: str,
    directory: Path,
    block: Mapping[str, Any] | ConfigDict,
    loss: SlideLoss,
    data: BagData,
    seed: int,
) -> BagModel:
    """Trains one MIL head on the training slides and picks the checkpoint on the validation ones.

    Args:
      name: for progress and messages.
      directory: of this training alone; a call after a kill goes on there.
      block: config block with head, options and optimisation (`config.bag_training`).
      loss: which terms and their weights.
      data: bags, targets, their task, splits and teacher outputs.
      seed: of initialisation, order of bags and dropout.

    Raises:
      ConfigError: the head's own loss does not go with the task, or `select` is no metric of it.
      TrainingError: a bag is too long for the device, or training diverged.
    """
    mesh = sharding.make_mesh()
    one = HeadTraining(name, block, loss, data, seed, mesh, places(block, loss, data))
    result = fit(
        name=name,
        directory=directory,
        params=one.start(),
        loss_fn=loss_function(one.module, loss, data.task),
        batches=one.batches.dataset(),
        validate=Validation(one.module, [one.loader], mesh),
        settings=one.settings(examples=one.batches.bags_of_an_update),
        constants=one.loader.constants,
        mesh=mesh,
        seed=seed,
        joint=one.joint,
        place=one.batches.before,
    )
    return one.model(result)


def places(
    block: Mapping[str, Any] | ConfigDict, loss: SlideLoss, data: BagData
) -> Float[np.ndarray, "rows 2"] | None:
    """Where the instances lie, in patches, for a head that needs to know."""
    options = _head_options(block, loss)
    module = heads.create(block["head"], num_classes=data.task.width, **options)
    return bags.places_of(data.store) if module.needs_xy else None


class HeadTraining:
    """One head to be trained: module, batches, and the model that comes of it.

    Attributes:
      block, loss, seed, mesh, data: as given; data with the places, if there are some.
      options, module: of the head.
      loader, batches: of its bags.
    """

    def __init__(
        self,
        name: str,
        block: Mapping[str, Any] | ConfigDict,
        loss: SlideLoss,
        data: BagData,
        seed: int,
        mesh: Mesh,
        xy: Float[np.ndarray, "rows 2"] | None,
    ):
        """
        Args:
          name, block, loss, data, seed: as for `train_head`.
          mesh: of the training.
          xy: from `places`.

        Raises:
          As `train_head`.
        """
        self.block, self.loss, self.seed, self.mesh = block, loss, seed, mesh
        self.options = _head_options(block, loss)
        self.module = heads.create(block["head"], num_classes=data.task.width, **self.options)
        if self.module.needs_classes and not data.task.has_output_a_class:
            raise ConfigError(
                f"the head {block['head']} has an output a class, which the task {data.task.name} "
                "does not ask for; choose another head"
            )
        if data.task.joint and self.module.has_own_loss():
            raise ConfigError(
                f"the head {block['head']} has a loss of its own, slide by slide, but the task "
                f"{data.task.name} looks at all slides of an update; choose another head"
            )
        if xy is not None:
            data = dataclasses.replace(data, per_instance={**data.per_instance, "xy": xy})
        self.data = data
        self.loader = bags.BagLoader(data, block, mesh, name, head=self.module)
        self.batches = self.loader.training(seed=seed)

    def start(self) -> Any:
        """The parameters that training starts from."""
        dummy = (jnp.zeros((1, 8, self.loader.mean.size)), jnp.ones((1, 8), bool))
        return _initial(self.module)(jax.random.key(self.seed), *dummy)["params"]

    @functools.cached_property
    def parameters(self) -> int:
        """Numbers that the head learns."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.start()))

    def settings(self, **options: Any) -> TrainSettings:
        """Of its training."""
        return train_settings(
            self.block,
            steps=self.block["epochs"] * self.batches.updates,
            select=self.data.task.select(self.block["select"], balance=self.block["balance"]),
            epoch=self.batches.updates,
            **options,
        )

    @property
    def joint(self) -> Joint | None:
        """Of a task whose slides depend on each other."""
        task = self.data.task
        if not (task.joint and self.loss.lambda_ce):
            return None
        return Joint(lambda *arguments: _output(self.module, *arguments)[0].logits, task.loss)

    def model(self, result: FitResult) -> BagModel:
        """The trained head."""
        data, loader = self.data, self.loader
        scale = (loader.mean, loader.sd)
        model = BagModel(self.block["head"], self.options, data.task, result.params, *scale)
        if not data.task.calibrates:
            return model
        logits = []
        with progress("the model on its training slides", len(data.train)) as bar:
            for slide in data.train.tolist():
                logits.append(model.predict_slide(data.store, slide)[0])
                bar.advance()
        task = data.task.calibrated(np.stack(logits), data.targets[data.train])
        return dataclasses.replace(model, task=task)


@functools.lru_cache(maxsize=4)
def _initial(module: heads.Head) -> Callable:
    return jax.jit(module.init)


def _head_options(block: Mapping[str, Any] | ConfigDict, loss: SlideLoss) -> dict[str, Any]:
    known = heads.defaults(heads.find(block["head"]))
    options = {key: block[key] for key in ("dropout", "dtype", "hidden") if key in known}
    if loss.by_instance:
        options["instance_classes"] = 2
    return options | heads.parse_options(block["head"], block["options"])


def _output(
    module: heads.Head, params, constants, batch, key, train
) -> tuple[heads.HeadOutput, dict[str, Any]]:
    """What a head says of a batch, and the batch as losses take it."""
    instances, batch, where = batches.of_batch(constants, batch)
    options = {**where, "train": train, "rngs": {"dropout": key}}
    return module.apply({"params": params}, instances, batch["mask"], **options), batch


def loss_function(
    module: heads.Head, loss: SlideLoss, task: Task, own: tuple[str, ...] = ()
) -> LossFn:
    """What a head learns from, as `fit` takes it; constants named by `own` replace those of the
    loss."""

    def loss_fn(*arguments):
        output, batch = _output(module, *arguments)
        this = dataclasses.replace(loss, **{name: arguments[1][name] for name in own})
        return this.terms(output, batch, task=task, head=module)

    return loss_fn
