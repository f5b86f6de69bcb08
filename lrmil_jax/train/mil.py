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
from ml_collections import ConfigDict

from lrmil_jax import heads
from lrmil_jax.data.stacked import StackedBatches
from lrmil_jax.errors import ConfigError
from lrmil_jax.progress import progress
from lrmil_jax.tasks import Task
from lrmil_jax.train import bags, sharding
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.bags import BagData
from lrmil_jax.train.checkpoint import FitResult
from lrmil_jax.train.joint import Joint
from lrmil_jax.train.loop import fit, fit_several
from lrmil_jax.train.slide_loss import SlideLoss
from lrmil_jax.train.state import Several, TrainSettings
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
        patience=patience or None,
        select=select,
        fsdp=block["fsdp"],
        optimizer=block["optimizer"],
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
    xy = _places(block, loss, data)
    one = _Job(name, block, loss, data, seed, mesh, xy)
    result = fit(
        name=name,
        directory=directory,
        params=one.start(),
        loss_fn=_loss_fn(one.module, loss, data.task),
        batches=one.batches.dataset(),
        validate=Validation(one.module, [one.loader], mesh),
        settings=one.settings(examples=one.batches.bags_of_an_update),
        constants=one.loader.constants,
        mesh=mesh,
        seed=seed,
        joint=one.joint,
    )
    return one.model(result)


def train_heads(
    *,
    name: str,
    directory: Path,
    block: Mapping[str, Any] | ConfigDict,
    loss: SlideLoss,
    jobs: Mapping[str, tuple[BagData, int]],
) -> dict[str, BagModel]:
    """`train_head` of several folds and seeds on the same slides, in as few programs as it takes.

    Each model is what it would be alone (to rounding; a head that draws chance in training draws
    other numbers). One program trains those whose epochs have equally many updates and whose task
    is the same (the scale of a regression and the intervals of survival are each fold's own), as
    many at once as the device has room for; where the features do not stay on the device, one
    model after another is trained.

    Args:
      name, directory, block, loss: as for `train_head`, of all of them.
      jobs: data and seed of each, by a name that makes a folder; all have one store.

    Raises:
      As `train_head`.
    """
    mesh, (first, _) = sharding.make_mesh(), next(iter(jobs.values()))
    if any(data.store is not first.store for data, _ in jobs.values()):
        raise ValueError("heads that are trained together must have one store of features")
    xy = _places(block, loss, first)
    prepared = {
        key: _Job(f"{name}, {key}", block, loss, data, seed, mesh, xy)
        for key, (data, seed) in jobs.items()
    }
    if not next(iter(prepared.values())).loader.resident:
        return {
            key: train_head(name=f"{name}, {key}", directory=directory / key, block=block,
                            loss=loss, data=data, seed=seed)
            for key, (data, seed) in jobs.items()
        }  # fmt: skip
    models = {}
    for number, keys in enumerate(_groups(prepared)):
        chosen = {key: prepared[key] for key in keys}
        models |= _train_group(f"{name}, {len(keys)} models", directory / f"group_{number}", chosen)
    return {key: models[key] for key in jobs}


def _groups(jobs: Mapping[str, "_Job"]) -> list[list[str]]:
    """Names of those that one program trains."""
    first = next(iter(jobs.values()))
    params = sum(leaf.size for leaf in jax.tree.leaves(first.start()))
    # Parameters, their best, two moments, a gradient, and a copy of some of them.
    each = first.loader.need + 6 * 4 * params
    most = max(1, first.loader.room // each)
    alike: dict[Any, list[str]] = {}
    for key, job in jobs.items():
        alike.setdefault((job.batches.updates, job.data.task), []).append(key)
    return [keys[at : at + most] for keys in alike.values() for at in range(0, len(keys), most)]


def _train_group(name: str, directory: Path, jobs: Mapping[str, "_Job"]) -> dict[str, BagModel]:
    several = Several(
        names=tuple(jobs),
        seeds=tuple(job.seed for job in jobs.values()),
        examples=tuple(job.batches.bags_of_an_update for job in jobs.values()),
        constants={"mean": 0, "sd": 0, "bank": None},
    )
    each = list(jobs.values())
    first, loaders = each[0], [job.loader for job in each]
    stacked = StackedBatches([job.batches for job in each], budget=first.block["budget"])
    results = fit_several(
        name=name,
        directory=directory,
        several=several,
        params=bags.stacked([job.start() for job in each]),
        loss_fn=_loss_fn(first.module, first.loss, first.data.task),
        batches=stacked.dataset(),
        validate=Validation(first.module, loaders, first.mesh, several),
        settings=first.settings(),
        constants=bags.together(loaders),
        mesh=first.mesh,
        joint=first.joint,
    )
    models = zip(each, results, strict=True)
    return dict(zip(jobs, [job.model(result) for job, result in models], strict=True))


def _places(block, loss: SlideLoss, data: BagData) -> np.ndarray | None:
    """Where the instances lie, for a head that needs to know."""
    options = _head_options(block, loss)
    module = heads.create(block["head"], num_classes=data.task.width, **options)
    return bags.places_of(data.store) if module.needs_xy else None


class _Job:
    """One head to be trained: module, batches, and the model that comes of it."""

    def __init__(self, name, block, loss, data: BagData, seed: int, mesh, xy):
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
        return Joint(lambda *arguments: _output(self.module, *arguments).logits, task.loss)

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
    if loss.lambda_hard and loss.hard == "instance":
        options["instance_classes"] = 2
    return options | heads.parse_options(block["head"], block["options"])


def _output(module: heads.Head, params, constants, batch, key, train) -> heads.HeadOutput:
    instances = bags.of_batch(constants, batch)
    options = {"xy": batch.get("xy"), "train": train, "rngs": {"dropout": key}}
    return module.apply({"params": params}, instances, batch["mask"], **options)


def _loss_fn(module: heads.Head, loss: SlideLoss, task: Task) -> Callable:
    def loss_fn(*arguments):
        output = _output(module, *arguments)
        return loss.terms(output, arguments[2], task=task, head=module)

    return loss_fn
