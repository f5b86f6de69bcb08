"""Many MIL heads in one program: folds, seeds, and points of a sweep over the losses' weights."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import cluster, files
from lrmil_jax.data.stacked import StackedBatches
from lrmil_jax.train import bags, mil, sharding, slide_loss
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.bags import BagData
from lrmil_jax.train.loop import fit_several
from lrmil_jax.train.price import Price
from lrmil_jax.train.slide_loss import SlideLoss
from lrmil_jax.train.state import Several
from lrmil_jax.train.validation import Validation


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadJob:
    """One of several heads to be trained.

    Attributes:
      data: its bags. Heads of the same data (the same object) and seed read the same batches, once
        for all of them.
      seed: of initialisation, order of bags and dropout.
      loss: terms and weights.
      learning_rate: None takes the block's.
    """

    data: BagData
    seed: int
    loss: SlideLoss = dataclasses.field(default_factory=SlideLoss)
    learning_rate: float | None = None


def train_heads(
    *,
    name: str,
    directory: Path,
    block: Mapping[str, Any] | ConfigDict,
    jobs: Mapping[str, HeadJob],
    later: int = 0,
) -> dict[str, BagModel]:
    """`mil.train_head` of several jobs on the same slides, in as few programs as it takes.

    Each model is what it would be alone (to rounding; a head that draws chance in training draws
    other numbers). One program trains those whose epochs have equally many updates, whose task is
    the same (the scale of a regression and the intervals of survival are each fold's own) and
    whose losses have the same shapes, as many at once as the device has room for. Where features
    do not stay on the device, a program has one stream of batches.

    Args:
      name, directory, block: as for `mil.train_head`, of all of them.
      jobs: by a name that makes a folder; all have one store.
      later: models that further calls will train, for the estimate of what all cost.

    Raises:
      As `mil.train_head`.
    """
    mesh, first = sharding.make_mesh(), next(iter(jobs.values()))
    if any(job.data.store is not first.data.store for job in jobs.values()):
        raise ValueError("heads that are trained together must have one store of features")
    xy = mil.places(block, first.loss, first.data)
    streams: dict[Any, mil.HeadTraining] = {}
    members: dict[Any, list[str]] = {}
    for key, job in jobs.items():
        stream = (id(job.data), job.seed, job.loss.by_instance)
        if job.data.task.joint:  # what a first pass adds to a batch is each model's own
            stream = (*stream, key)
        if stream not in streams:
            streams[stream] = mil.HeadTraining(f"{name}, {key}", block, job.loss, job.data,
                                               job.seed, mesh, xy)  # fmt: skip
        members.setdefault(stream, []).append(key)
    models = {}
    of_streams = [(streams[stream], keys) for stream, keys in members.items()]
    groups = cluster.first_then_rest(
        f"{name}: groups", lambda: _same_groups(directory / "groups.json", of_streams)
    )
    left = len(jobs) + later
    for number, group in enumerate(groups):
        count = sum(len(keys) for _, keys in group)
        left -= count
        title, folder = f"{name}, {count} models", directory / f"group_{number}"
        price = Price(title, models=count, later=left)
        models |= _train_group(title, folder, group, jobs, price)
    return {key: models[key] for key in jobs}


# The streams of a program, each with the names of the jobs that learn from it.
_Group = Sequence[tuple[mil.HeadTraining, Sequence[str]]]


def _same_groups(path: Path, streams: _Group) -> list[_Group]:
    """The groups of the run that this goes on from, or new ones: there may be more or less memory
    now, and a program goes on from its own checkpoint alone."""
    stream_of = {key: one for one, keys in streams for key in keys}
    if path.is_file():
        named = json.loads(path.read_text(encoding="utf-8"))
        parts = [keys for group in named for keys in group]
        same = {key for keys in parts for key in keys} == stream_of.keys()
        if same and all(len({id(stream_of[key]) for key in keys}) == 1 for keys in parts):
            return [[(stream_of[keys[0]], keys) for keys in group] for group in named]
    groups = _groups(streams)
    files.write_json(path, [[list(keys) for _, keys in group] for group in groups])
    return groups


def _groups(streams: _Group) -> list[_Group]:
    """What one program trains each: alike, and as much as the device has room for."""
    alike: dict[Any, list[tuple[mil.HeadTraining, Sequence[str]]]] = {}
    for one, keys in streams:
        most = _most(one)
        for at in range(0, len(keys), most):
            part = keys[at : at + most]
            kind = (one.batches.updates, one.data.task, one.loss.by_instance, len(part))
            alike.setdefault(kind, []).append((one, part))
    groups = []
    for kind, own in alike.items():
        most = max(1, _most(own[0][0]) // kind[-1]) if own[0][0].loader.resident else 1
        groups += [own[at : at + most] for at in range(0, len(own), most)]
    return groups


def _most(one: mil.HeadTraining) -> int:
    """Models for which the device has room at once."""
    instances = max(one.batches.lengths[-1], one.block["budget"])
    computed = instances * one.module.instance_bytes(one.loader.mean.size)
    # Parameters, their best, two moments, a gradient, and a copy of some of them.
    return max(1, one.loader.room // (computed + 6 * 4 * one.parameters))


def _train_group(
    name: str, directory: Path, group: _Group, jobs: Mapping[str, HeadJob], price: Price
) -> dict[str, BagModel]:
    trainings = [one for one, _ in group]
    of_model = {key: one for one, keys in group for key in keys}
    first, loaders = trainings[0], [one.loader for one in trainings]
    loss, own = slide_loss.together([jobs[key].loss for key in of_model])
    rate = first.block["learning_rate"]
    several = Several(
        names=tuple(of_model),
        seeds=tuple(one.seed for one in trainings),
        examples=tuple(one.batches.bags_of_an_update for one in trainings),
        rates=_rates([jobs[key].learning_rate or rate for key in of_model], rate),
        by_stream=("mean", "sd"),
        by_model=tuple(own),
    )
    stacked = StackedBatches([one.batches for one in trainings], budget=first.block["budget"])
    starts = [one.start() for one in trainings]
    results = fit_several(
        name=name,
        directory=directory,
        several=several,
        params=bags.stacked([start for start in starts for _ in range(several.points)]),
        loss_fn=mil.loss_function(first.module, loss, first.data.task, tuple(own)),
        batches=stacked.dataset(),
        validate=Validation(first.module, loaders, first.mesh, several),
        settings=first.settings(),
        constants=bags.together(loaders) | own,
        mesh=first.mesh,
        place=stacked.before,
        joint=next((one.joint for one in trainings if one.joint is not None), None),
        price=price,
    )
    models = zip(of_model.items(), results, strict=True)
    return {key: one.model(result) for (key, one), result in models}


def _rates(wanted: Sequence[float], rate: float) -> tuple[float, ...] | None:
    if all(one == rate for one in wanted):
        return None
    return tuple(one / rate for one in wanted)
