"""Which runs a study consists of: every seed with the config as it is, then with each variant.

Points of a sweep that differ from a run in settings of stage 2 alone are no runs of their own: the
run's stage `sweep` trains them together. All others, whatever else they change, share a run with
those that change the same.
"""

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import checks, graph, methods, points
from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError

BASE = "base"
# A variant is there for its figure: what only describes the cohort or the cost is done once.
_LEAN = {
    "student.no_distillation": "False",
    "evaluate.colour_baseline": "False",
    "evaluate.timed_slides": "0",
    "report.heatmaps": "0",
    "report.slides": "0",
}
# Keys that change what a slide costs: such a variant is timed as the config itself is.
_COSTLY = (
    *("method", "select.rho", "select.count", "geometry."),
    *("encoder.name", "encoder.px", "encoder.lr_px"),
)
_OF_STUDY = ("study.seeds", "study.variants", "study.budgets", "study.other_methods")
_SEEDED = (
    *("data.labels", "data.slides", "data.tiles", "data.captions", "data.masks"),
    *("data.features", "data.features_lr", "encoder.weights", "pretrain.init"),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A model that the stage `sweep` of a run trains.

    Attributes:
      name: in the study's table.
      key: in the run's `sweep.points`.
      changes: the keys that it changes of the run's.
    """

    name: str
    key: str
    changes: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the pipeline within a study.

    Attributes:
      seed: of the run.
      variant: the variant's name, `BASE` for the config as it is.
      changes: the keys that the variant changes, as it spells their values.
      config: of the run, without the study.
      folder: its working directory.
      points: of its stage `sweep`.
    """

    seed: int
    variant: str
    changes: Mapping[str, str]
    config: ConfigDict
    folder: Path
    points: Sequence[Point] = ()


def is_study(config: ConfigDict) -> bool:
    """Whether the config asks for more than one training of a kind."""
    study, sweep = config.study, config.sweep
    asked = (study.seeds, study.variants, study.budgets, sweep.each, sweep.grid, sweep.points)
    return any(asked)


def plan(config: ConfigDict, workdir: Path) -> list[Run]:
    """All runs in order, each checked, before the first begins.

    Raises:
      ConfigError: a variant that cannot be read, or whose config cannot be, by name; a seed or
        variant named twice.
    """
    methods.of(config).check(config)
    variants = {BASE: {}} | methods.of(config).budget_variants(config)
    given = points.parse(config.study.variants, key="study.variants")
    for name in given.keys() & variants.keys():
        raise ConfigError(f"study.variants has the name {name!r} twice")
    variants |= given
    within = _swept(config, variants)
    seeds = tuple(config.study.seeds) or (config.seed,)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"study.seeds has a seed twice: {seeds}")
    runs = []
    for seed in seeds:
        for name, changes in variants.items():
            folder = workdir / "runs" / f"seed_{seed}" / re.sub(r"[^\w.=-]+", "_", name)
            own = within.get(name, ())
            made = _config(config, seed, name, changes, own)
            runs.append(Run(seed, name, changes, made, folder, own))
    if len({run.folder for run in runs}) < len(runs):
        raise ConfigError("two study.variants have the same name but for signs; rename one")
    return runs


def _swept(config: ConfigDict, variants: dict[str, dict[str, str]]) -> dict[str, list[Point]]:
    """The points of each variant's sweep; variants that points need are added."""
    wanted = {points.title(one): one for one in _listed(config)}
    named = points.parse(config.sweep.points, key="sweep.points")
    for name in named.keys() & (wanted.keys() | variants.keys()):
        raise ConfigError(f"sweep.points has the name {name!r} twice")
    block, flat = methods.of(config).swept, configuration.flatten(config)
    within: dict[str, list[Point]] = {}
    for name, changes in (wanted | named).items():
        changes = {key: value for key, value in changes.items() if not _is(flat, key, value)}
        inner = {key: value for key, value in changes.items()
                 if block is not None and key.startswith(f"{block}.")}  # fmt: skip
        outer = {key: value for key, value in changes.items() if key not in inner}
        alike = [one for one, others in variants.items() if others == outer]
        run = alike[0] if alike else points.title(outer) if inner else name
        variants.setdefault(run, outer)
        if inner:
            key = name if name in named else points.title(inner)
            within.setdefault(run, []).append(Point(name, key, inner))
    return within


def _listed(config: ConfigDict) -> list[dict[str, str]]:
    return points.each(config.sweep.each) + points.grid(config.sweep.grid)


def _is(flat: Mapping[str, Any], key: str, value: str) -> bool:
    """Whether a key is so already."""
    if key not in flat:
        return False  # a mistake that is told where it is applied
    try:
        return flat[key] == ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return flat[key] == value


def first(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config of the first run, or the config itself if it is no study."""
    return plan(config, workdir)[0].config if is_study(config) else config


def _config(
    config: ConfigDict,
    seed: int,
    name: str,
    changes: Mapping[str, str],
    swept: Sequence[Point],
) -> ConfigDict:
    flat = configuration.flatten(config)
    seeded = {
        key: flat[key].replace("{seed}", str(seed))
        for key in _SEEDED
        if flat[key] is not None and "{seed}" in flat[key]
    }
    alone = {"seed": str(seed), "study.workers": "1"}
    alone |= dict.fromkeys(_OF_STUDY, "()")
    alone |= dict.fromkeys(("sweep.each", "sweep.grid"), "()")
    alone["sweep.points"] = repr(tuple(points.text(one.key, one.changes) for one in swept))
    lean = {} if name == BASE else dict(_LEAN)
    if any(key.startswith(_COSTLY) for key in changes):
        lean.pop("evaluate.timed_slides", None)
    spelled = {key: value.replace("{seed}", str(seed)) for key, value in changes.items()}
    try:
        made = configuration.replaced(config, alone | seeded | lean | spelled)
        checks.validate(made)
    except ConfigError as error:
        given = points.parse(config.study.variants, key="study.variants")
        of = "study.variants" if name in given else "the sweep"
        where = "" if name == BASE else f"the variant {name!r} of {of}: "
        raise ConfigError(f"{where}{error}") from error
    for one in swept:
        try:
            checks.validate(configuration.replaced(made, one.changes))
        except ConfigError as error:
            raise ConfigError(f"{one.name!r} of the sweep: {error}") from error
    return made


def same_slides(one: Run, other: Run) -> bool:
    """Whether `prepare` makes the same regions for both."""
    given = one.config.data.labels is not None  # such slides do not depend on the seed
    return _agree(one, other, "prepare", forget=("seed",) if given else ())


def same_features(one: Run, other: Run) -> bool:
    """Whether `encode_hr` makes the same features for both."""
    if one.config.encoder.weights is None:
        return same_slides(one, other) and _agree(one, other, "encode_hr", forget=())
    # Weights that are given do not depend on how others would be trained.
    training = ("seed", "pretrain.", "data.tiles", "data.captions", "synthetic.tile")
    return same_slides(one, other) and _agree(one, other, "encode_hr", forget=training)


def _agree(one: Run, other: Run, stage: str, *, forget: tuple[str, ...]) -> bool:
    sides = [configuration.flatten(run.config) for run in (one, other)]
    stages = graph.possible_stages(one.config)
    keys = ["data.labels", "data.slides"]
    keys += graph.needed_keys(sides[0], graph.STAGES[stage], stages)
    return all(sides[0][key] == sides[1][key] for key in keys if not key.startswith(forget))
