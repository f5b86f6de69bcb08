"""Model folders: all that `predict` needs and nothing else, of one fold or of all."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.data import schema, slide_jobs, splits
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import WeightsError
from lrmil_jax.models import loading
from lrmil_jax.models.guided import Guide
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.selection.shared_space import SharedSpace
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.workspace import claims, cohorts, layout

# The stage that ends the training of the model that a method delivers.
DELIVERED_BY = {"lrmil": "student", "wise_fuse": "mil"}
_SCHEMA = 3
# What a guided classifier asks of the run's config.
_GUIDED = ("select.", "fuse.", "features.dtype", "seed")


def export(
    config: ConfigDict,
    workdir: Path,
    fold: int,
    *,
    own: Mapping[str, Path],
    shared: Mapping[str, Path],
) -> Path:
    """Makes the model folder of one fold, in that of the stage that ends its training.

    Args:
      config: of the run.
      workdir: of the run.
      fold: from 1, or `splits.FINAL`.
      own: name in the fold's part of the folder -> the file that is copied there.
      shared: the same for what all folds have in common.
    """
    folder = layout.stage_folder(workdir, DELIVERED_BY[config.method], fold) / "model"
    flat = configuration.flatten(config)
    prepare = ("prepare.reader", "prepare.tissue_mpp", "prepare.min_tissue")
    facts = {
        "method": config.method,
        "task": cohorts.prepared(config, workdir).task.facts(),
        "geometry": dict(config.geometry),
        "prepare": {key.removeprefix("prepare."): flat[key] for key in prepare},
        "encoder": {key: config.encoder[key] for key in ("name", "batch", "dtype")},
        "features_dtype": config.features.dtype,
        "made_by": claims.read(workdir),
    }
    if config.method == "wise_fuse":
        facts["guided"] = {key: flat[key] for key in flat if key.startswith(_GUIDED)}
    write(folder, facts, members={_member(fold): own}, shared=shared)
    return folder


def write(
    folder: Path,
    facts: Mapping[str, Any],
    *,
    members: Mapping[str, Mapping[str, Path]],
    shared: Mapping[str, Path],
) -> None:
    """Writes a model folder; `model.json`, which names and hashes every file, comes last.

    Args:
      folder: to write.
      facts: what `load` asks for beside the files; perhaps `thresholds` on the probability of the
        second of two classes.
      members: name of each member -> name of its file -> the file that is copied there.
      shared: the same for files that all members have in common.
    """
    copies = {
        folder / member / name: origin
        for member, own in members.items()
        for name, origin in own.items()
    }
    copies |= {folder / name: origin for name, origin in shared.items()}
    for target, origin in copies.items():
        with files.atomic_path(target) as temporary:
            shutil.copyfile(origin, temporary)
    hashes = {str(path.relative_to(folder)): pretrained.weights_hash(path) for path in copies}
    about = {"schema": _SCHEMA, "members": list(members), "sha256": hashes}
    files.write_json(folder / "model.json", dict(facts) | about)


def _member(fold: int) -> str:
    return "final" if fold == splits.FINAL else f"fold_{fold}"


def members(config: ConfigDict) -> tuple[int, ...]:
    """The folds whose models are delivered: one, or those of an ensemble; () if the method has no
    model to deliver."""
    if config.method not in DELIVERED_BY:
        return ()
    if config.deliver == "ensemble" or config.folds == 1:
        return tuple(range(1, config.folds + 1))
    return (splits.FINAL,)


def trainings(config: ConfigDict) -> tuple[int, ...]:
    """Every fold that is trained, the final model last."""
    numbers = tuple(range(1, config.folds + 1))
    return numbers + tuple(fold for fold in members(config) if fold not in numbers)


def deliver(config: ConfigDict, workdir: Path, thresholds: Sequence[Mapping[str, float]]) -> Path:
    """Makes `workdir/model`: the final model, that of the only fold, or the folds' ensemble, whose
    probabilities `predict` averages.

    Args:
      config: of the run.
      workdir: of the run.
      thresholds: of each member, by name (`evals.thresholds`); an ensemble's are their means.
    """
    target = workdir / "model"
    fresh = workdir / ".model.new"
    shutil.rmtree(fresh, ignore_errors=True)
    with files.disk_errors(workdir):
        hashes: dict[str, str] = {}
        for fold in members(config):
            origin = layout.stage_folder(workdir, DELIVERED_BY[config.method], fold) / "model"
            shutil.copytree(origin, fresh, dirs_exist_ok=True)
            facts = json.loads((origin / "model.json").read_text(encoding="utf-8"))
            hashes |= facts["sha256"]
        facts["thresholds"] = {
            name: sum(one[name] for one in thresholds) / len(thresholds)
            for name in thresholds[0]
            if all(name in one for one in thresholds)
        }
        facts |= {"sha256": hashes, "members": [_member(fold) for fold in members(config)]}
        files.write_json(fresh / "model.json", facts)
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)
    return target


def load(folder: Path | str) -> SlideModel:
    """Loads a model folder, or that of a finished work directory: all that a prediction takes.

    Raises:
      WeightsError: it is no model folder, one of another version, or a part of it is missing or
        broken.
    """
    folder = _find(Path(folder))
    path = folder / "model.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other_schema(folder, facts["schema"])
        geometry = schema.Geometry(**facts["geometry"])
        settings = slide_jobs.TilingSettings(geometry=geometry, with_hr=False, **facts["prepare"])
        hashes = dict(facts["sha256"])
        guided, encoder = facts["method"] == "wise_fuse", dict(facts["encoder"])
        parts = [folder / name for name in facts["members"]]
        facts["features_dtype"], encoder["name"], encoder["batch"], encoder["dtype"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is broken ({error!r}); copy the model folder again") from error
    for name, digest in hashes.items():
        if pretrained.weights_hash(folder / name) != digest:
            raise WeightsError(
                f"{folder / name} is not the file that the model was saved with; "
                "copy the model folder again"
            )
    tower = _tower(folder, encoder) if guided else None
    return SlideModel(
        members=[_member_of(part, encoder, settings.geometry, tower) for part in parts],
        settings=settings,
        dtype=facts["features_dtype"],
        guide=None if tower is None else _guide(folder, facts, tower),
        thresholds=facts.get("thresholds", {}),
        folder=folder,
    )


def _refuse_other_schema(folder: Path, version: int) -> None:
    if version != _SCHEMA:
        raise WeightsError(
            f"the model folder {folder} has schema {version}, this version reads schema {_SCHEMA}; "
            "run the command that trained it once more, or use the version that made it"
        )


def _find(folder: Path) -> Path:
    for found in (folder, folder / "model"):
        if (found / "model.json").is_file():
            return found
    raise WeightsError(
        f"--model {folder} holds no model.json; give the folder `model` of a trained --workdir"
    )


def _tower(folder: Path, encoder: dict) -> Encoder:
    """The frozen HR encoder of a guided model."""
    (path,) = folder.glob("encoder.*")
    return loading.load_encoder(encoder["name"], path, dtype=encoder["dtype"])


def _member_of(
    part: Path, encoder: dict, geometry: schema.Geometry, tower: Encoder | None
) -> tuple[BatchEncoder, BagModel]:
    """One member: its LR encoder, or that which its prompts make of the tower, and its head."""
    weights, tuned = part / "encoder.safetensors", part / "prompts.safetensors"
    if tower is None or weights.is_file():
        reader = loading.load_encoder(encoder["name"], weights, dtype=encoder["dtype"])
        reader = loading.low_resolution(reader, geometry)
    else:
        reader = loading.low_resolution(tower, geometry)
        if tuned.is_file():
            reader = loading.prompted(reader, tuned)
    head = BagModel.load(part / "head.safetensors")
    return BatchEncoder(reader, batch=encoder["batch"]), head


def _guide(folder: Path, facts: dict, tower: Encoder) -> Guide:
    config = configuration.default()
    config.update_from_flattened_dict(facts["guided"])
    return Guide(
        hr_encoder=BatchEncoder(tower, batch=facts["encoder"]["batch"]),
        space=SharedSpace(folder / "text.safetensors"),
        config=config,
    )
