"""The model that a run delivers: which folds train it, and the folder that `predict` takes."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster, files, methods
from lrmil_jax import config as configuration
from lrmil_jax.data import splits
from lrmil_jax.models import model_folder, trained
from lrmil_jax.workspace import cohorts, foreign, layout, provenance, stage_files, twins

log = logging.getLogger(__name__)


def members(config: ConfigDict) -> tuple[int, ...]:
    """The folds whose models are delivered: one, or those of an ensemble; () if the method has no
    model to deliver, or none that could read a slide."""
    if methods.of(config).main is None or not foreign.reads_slides(config):
        return ()
    if config.deliver == "ensemble" or config.folds == 1:
        return tuple(range(1, config.folds + 1))
    return (splits.FINAL,)


def trainings(config: ConfigDict) -> tuple[int, ...]:
    """Every fold that is trained, the final model last."""
    numbers = tuple(range(1, config.folds + 1))
    return numbers + tuple(fold for fold in members(config) if fold not in numbers)


def export(config: ConfigDict, workdir: Path, fold: int, *, stage: str) -> None:
    """Makes the model folder of one fold beside its head, if the stage that trained this head ends
    the training of the method's model.

    Args:
      config, workdir: of the run.
      fold: from 1, or `splits.FINAL`.
      stage: that calls.
    """
    cluster.first_only("the model folder", _export, config, workdir, fold, stage)


def _export(config: ConfigDict, workdir: Path, fold: int, stage: str) -> None:
    method = methods.of(config)
    folder = layout.stage_folder(workdir, stage, fold) / "model"
    if not members(config) or stage != method.main.stage or (folder / "model.json").is_file():
        return
    flat = configuration.flatten(config)
    prepare = ("prepare.reader", "prepare.tissue_mpp", "prepare.tissue_threshold",
               "prepare.tissue_close_um", "prepare.ink", "prepare.min_tissue")  # fmt: skip
    prepare += ("prepare.upsample",) * config.prepare.upsample
    facts = {
        "method": method.name,
        "task": cohorts.prepared(config, workdir).task.facts(),
        "geometry": dict(config.geometry),
        "prepare": {key.removeprefix("prepare."): flat[key] for key in prepare},
        "encoder": trained.reading_facts(config),
        "features_dtype": config.features.dtype,
        "made_by": provenance.read(workdir),
        **method.model_facts(config),
    }
    own, shared = method.model_files(config, workdir, fold)
    own = {"head.safetensors": stage_files.head(workdir, stage, fold), **own}
    # What an external cohort must not hold.
    own[twins.SEEN] = twins.write_seen(workdir, cohorts.prepared(config, workdir), fold)
    model_folder.write(folder, facts, members={_member(fold): own}, shared=shared)


def _member(fold: int) -> str:
    return "final" if fold == splits.FINAL else f"fold_{fold}"


def deliver(
    config: ConfigDict,
    workdir: Path,
    chosen: Sequence[tuple[Mapping[str, float], float | None]],
) -> None:
    """Makes `workdir/model`: the final model, that of the only fold, or the folds' ensemble, whose
    probabilities `predict` averages; nothing where there is no model to deliver.

    Args:
      config, workdir: of the run.
      chosen: of each member its thresholds by name (`evals.thresholds`) and its temperature; an
        ensemble's are their means, where all members have them.
    """
    target, fresh = workdir / "model", workdir / ".model.new"
    shutil.rmtree(fresh, ignore_errors=True)
    folds = members(config)
    if not folds:
        return
    stage = methods.of(config).main.stage
    with files.disk_errors(workdir):
        hashes: dict[str, str] = {}
        for fold in folds:
            origin = layout.stage_folder(workdir, stage, fold) / "model"
            shutil.copytree(origin, fresh, dirs_exist_ok=True)
            facts = json.loads((origin / "model.json").read_text(encoding="utf-8"))
            hashes |= facts["sha256"]
        thresholds, temperatures = zip(*chosen, strict=True)
        facts["thresholds"] = {
            name: sum(one[name] for one in thresholds) / len(thresholds)
            for name in thresholds[0]
            if all(name in one for one in thresholds)
        }
        unknown = None in temperatures
        facts["temperature"] = None if unknown else sum(temperatures) / len(temperatures)
        facts |= {"sha256": hashes, "members": [_member(fold) for fold in folds]}
        files.write_json(fresh / "model.json", facts)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    log.info("delivered model: %s", target)
    if len(folds) > 1:
        log.info("it is an ensemble: every patch is encoded %d times; deliver=final makes one "
                 "model that encodes it once", len(folds))  # fmt: skip
