"""Which runs a study consists of: every seed with the config as it is, then with each variant."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import checks, graph, methods
from lrmil_jax import config as configuration
from lrmil_jax.errors import ConfigError

BASE = "base"
# A variant is there for its figure: what only describes the cohort or the cost is done once.
_LEAN = {
    "student.no_distillation": "False",
    "evaluate.colour_baseline": "False",
    "evaluate.timed_slides": "0",
    "report.heatmaps": "0",
}
# Keys that change what a slide costs: such a variant is timed as the config itself is.
_COSTLY = ("method", "select.rho", "select.count", "encoder.name", "geometry.")
_SEEDED = (
    *("data.labels", "data.slides", "data.tiles", "data.captions", "data.masks"),
    "encoder.weights",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the pipeline within a study.

    Attributes:
      seed: of the run.
      variant: the variant's name, `BASE` for the config as it is.
      changes: the keys that the variant changes, as it spells their values.
      config: of the run, without the study.
      folder: its working directory.
    """

    seed: int
    variant: str
    changes: Mapping[str, str]
    config: ConfigDict
    folder: Path


def is_study(config: ConfigDict) -> bool:
    """Whether the config asks for more than one run."""
    return bool(config.study.seeds or config.study.variants or config.study.budgets)


def plan(config: ConfigDict, workdir: Path) -> list[Run]:
    """All runs in order, each checked, before the first begins.

    Raises:
      ConfigError: a variant that cannot be read, or whose config cannot be, by name; a seed or
        variant named twice.
    """
    methods.of(config).check(config)
    variants = {BASE: {}} | methods.of(config).budget_variants(config)
    given = parse_variants(config.study.variants)
    for name in given.keys() & variants.keys():
        raise ConfigError(f"study.variants has the name {name!r} twice")
    variants |= given
    seeds = tuple(config.study.seeds) or (config.seed,)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"study.seeds has a seed twice: {seeds}")
    runs = []
    for seed in seeds:
        for name, changes in variants.items():
            folder = workdir / "runs" / f"seed_{seed}" / re.sub(r"[^\w.=-]+", "_", name)
            runs.append(Run(seed, name, changes, _config(config, seed, name, changes), folder))
    if len({run.folder for run in runs}) < len(runs):
        raise ConfigError("two study.variants have the same name but for signs; rename one")
    return runs


def first(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config of the first run, or the config itself if it is no study."""
    return plan(config, workdir)[0].config if is_study(config) else config


def parse_variants(variants: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """{name: {key: value}} of `"name: key=value key=value"`.

    Raises:
      ConfigError: a text of another form, or a name given twice.
    """
    parsed: dict[str, dict[str, str]] = {}
    for text in variants:
        name, colon, rest = text.partition(":")
        name, pairs = name.strip(), [pair.partition("=") for pair in rest.split()]
        if (
            not colon
            or not name
            or not pairs
            or not all(sign and value for _, sign, value in pairs)
        ):
            raise ConfigError(
                f"the variant {text!r} of study.variants cannot be read; write "
                "'name: key=value key=value', values without spaces"
            )
        if name in parsed or name == BASE:  # those of the budgets: see `plan`
            raise ConfigError(f"study.variants has the name {name!r} twice")
        parsed[name] = {key: value for key, _, value in pairs}
    return parsed


def _config(config: ConfigDict, seed: int, name: str, changes: Mapping[str, str]) -> ConfigDict:
    flat = configuration.flatten(config)
    seeded = {
        key: flat[key].replace("{seed}", str(seed))
        for key in _SEEDED
        if flat[key] is not None and "{seed}" in flat[key]
    }
    alone = {"seed": str(seed), "study.workers": "1"}
    alone |= dict.fromkeys(("study.seeds", "study.variants", "study.budgets"), "()")
    lean = {} if name == BASE else dict(_LEAN)
    if any(key.startswith(_COSTLY) for key in changes):
        lean.pop("evaluate.timed_slides", None)
    spelled = {key: value.replace("{seed}", str(seed)) for key, value in changes.items()}
    try:
        made = configuration.replaced(config, alone | seeded | lean | spelled)
        checks.validate(made)
    except ConfigError as error:
        where = "" if name == BASE else f"the variant {name!r} of study.variants: "
        raise ConfigError(f"{where}{error}") from error
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
