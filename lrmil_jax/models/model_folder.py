"""Model folders: all that `predict` needs and nothing else, of one fold or of all."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.data import schema, slide_jobs
from lrmil_jax.encoders import pretrained
from lrmil_jax.errors import WeightsError
from lrmil_jax.models import loading
from lrmil_jax.models.cell_guide import CellGuide
from lrmil_jax.models.guided import Guide
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.selection.shared_space import SharedSpace
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.encode import BatchEncoder, Encoder

_SCHEMA = 4
# What a prediction's memory follows from; a broken or made-up file must not ask for all there is.
_BOUNDS = {
    "encoder.batch": (1, 65_536),
    "encoder.px": (16, 4096),
    "encoder.lr_px": (16, 4096),
    "geometry.patch_px": (16, 4096),
    "geometry.hr_mpp": (0.1, 10),
    "geometry.lr_mpp": (0.1, 10),
    "prepare.tissue_mpp": (0.5, 64),
    "prepare.min_tissue": (0, 1),
    "guided.select.count": (0, 10**9),
    "guided.select.windows": (1, 64),
}
_MOST_MEMBERS = 1000
# Of what type the parts of model.json are; one with None may be missing.
_TYPES = {
    **dict.fromkeys(("geometry", "prepare", "sha256", "encoder"), dict),
    "members": list,
    "features_dtype": str,
    "guided": dict | None,
    "head_chooses": bool | None,
    "high": bool | None,
    "thresholds": dict | None,
    "temperature": float | int | None,
}
_ENCODER_TYPES = {
    "name": str,
    "batch": int,
    "dtype": str,
    "px": int | None,
    "lr_px": int | None,
}


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
        second of two classes, and a `temperature`.
      members: name of each member -> name of its file -> the file that is copied there.
      shared: the same for files that all members have in common.
    """
    copies = {
        folder / member / name: origin
        for member, member_files in members.items()
        for name, origin in member_files.items()
    }
    copies |= {folder / name: origin for name, origin in shared.items()}
    for target, origin in copies.items():
        with files.atomic_path(target) as temporary:
            shutil.copyfile(origin, temporary)
    hashes = {str(path.relative_to(folder)): pretrained.weights_hash(path) for path in copies}
    about = {"schema": _SCHEMA, "members": list(members), "sha256": hashes}
    files.write_json(folder / "model.json", dict(facts) | about)


def load(folder: Path | str) -> SlideModel:
    """Loads a model folder, or that of a finished work directory: all that a prediction takes.

    Raises:
      WeightsError: it is no model folder, one of another version, or a part of it is missing or
        broken.
    """
    folder = _find(Path(folder))
    facts = _read(folder)
    geometry = schema.Geometry(**facts["geometry"])
    settings = slide_jobs.TilingSettings(geometry=geometry, with_hr=False, **facts["prepare"])
    high = bool(facts.get("high"))
    encoder = facts["encoder"]
    parts = [folder / name for name in facts["members"]]
    for name, digest in facts["sha256"].items():
        if pretrained.weights_hash(folder / name) != digest:
            raise WeightsError(
                f"{folder / name} is not the file that the model was saved with; "
                "copy the model folder again"
            )
    tower = _tower(folder, encoder)
    readers = [_reader(part, encoder, settings.geometry, tower, high=high) for part in parts]
    guide = None
    if facts.get("guided") is not None:
        guide = _guide(folder, facts, tower)
        readers = [guide.scoring_encoder(one, ratio=settings.geometry.ratio) for one in readers]
    elif facts.get("head_chooses"):
        guide = CellGuide(BatchEncoder(tower, batch=encoder["batch"]))
    return SlideModel(
        members=[
            (BatchEncoder(reader, batch=encoder["batch"]), BagModel.load(part / "head.safetensors"))
            for part, reader in zip(parts, readers, strict=True)
        ],
        settings=settings,
        dtype=facts["features_dtype"],
        high=high,
        guide=guide,
        thresholds=facts.get("thresholds") or {},
        temperature=facts.get("temperature"),
        folder=folder,
    )


def identity(folder: Path) -> str:
    """SHA-256 of all that a model folder holds, as 64 hex digits: what a prediction names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".safetensors"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    """What model.json says, each part of the type that it should be.

    Raises:
      WeightsError: it is broken, or of another version.
    """
    path = folder / "model.json"
    try:
        facts = files.parse_json(path.read_bytes())
        _refuse_other_schema(folder, facts["schema"])
        _check_types(facts, _TYPES)
        _check_types(facts["encoder"], _ENCODER_TYPES)
        _refuse_absurd(path, facts)
        loading.DTYPES[facts["encoder"]["dtype"]], schema.FEATURE_DTYPES[facts["features_dtype"]]
        geometry = schema.Geometry(**facts["geometry"])
        slide_jobs.TilingSettings(geometry=geometry, **facts["prepare"])
        _check_types(facts["sha256"], dict.fromkeys(facts["sha256"], str))
        names = [*facts["members"], *facts["sha256"]]
        if not facts["members"] or not all(isinstance(n, str) and n.isprintable() for n in names):
            raise TypeError("members or files are no names")
        if geometry.hr_mpp >= geometry.lr_mpp:
            raise ValueError(f"{geometry} cannot be")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is broken ({error!r}); copy the model folder again") from error
    return facts


def _check_types(facts: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raises TypeError for the first value of another type; a type may allow for None."""
    for name, wanted in types.items():
        optional = not isinstance(wanted, type) and isinstance(None, wanted)
        value = facts.get(name) if optional else facts[name]
        if not isinstance(value, wanted):
            raise TypeError(f"{name} is {value!r:.40}")


def read_facts(folder: Path) -> dict[str, Any]:
    """What the model folder that `load` has read says of itself."""
    return json.loads((folder / "model.json").read_text(encoding="utf-8"))


def _refuse_absurd(path: Path, facts: dict[str, Any]) -> None:
    """Refuses sizes that no model has, before memory is asked for.

    Raises:
      WeightsError: with the size.
    """
    flat = configuration.flatten(facts)
    for key, (low, high) in _BOUNDS.items():
        value = flat.get(key, low)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise WeightsError(
                f"{path} says {key} = {value!r}, but it must be from {low} to {high}; copy the "
                "model folder again"
            )
    if len(facts["members"]) > _MOST_MEMBERS:
        raise WeightsError(f"{path} names {len(facts['members'])} members, more than "
                           f"{_MOST_MEMBERS}; copy the model folder again")  # fmt: skip


def _refuse_other_schema(folder: Path, version: int) -> None:
    if version != _SCHEMA:
        raise WeightsError(
            f"the model folder {folder} has schema {version}, this version reads schema {_SCHEMA}; "
            "run the command that trained it once more, or use the version that made it"
        )


def _find(folder: Path) -> Path:
    for candidate in (folder, folder / "model"):
        if (candidate / "model.json").is_file():
            return candidate
    raise WeightsError(
        f"--model {folder} holds no model.json; give the folder `model` of a trained --workdir"
    )


def _tower(folder: Path, encoder: dict) -> Encoder | None:
    """The frozen HR encoder, of models that have it."""
    path = next(folder.glob("encoder.*"), None)
    if path is None:
        return None
    return _load(encoder, path)


def _load(encoder: dict, path: Path) -> Encoder:
    return loading.load_encoder(encoder["name"], path, dtype=encoder["dtype"], px=encoder.get("px"))


def _reader(
    part: Path, encoder: dict, geometry: schema.Geometry, tower: Encoder | None, *, high: bool
) -> Encoder:
    """What reads a member's patches: the tower itself at HR; at LR the member's own encoder or the
    tower, with the member's prompts if there are any."""
    weights, tuned = part / "encoder.safetensors", part / "prompts.safetensors"
    if tower is not None and high:
        return tower
    if tower is None or weights.is_file():
        tower = _load(encoder, weights)
    reader = loading.low_resolution(tower, geometry, encoder.get("lr_px"))
    return loading.prompted(reader, tuned) if tuned.is_file() else reader


def _guide(folder: Path, facts: dict, tower: Encoder) -> Guide:
    config = configuration.default()
    config.select.score = "patch"  # of models that were saved before there was a choice
    try:
        config.update_from_flattened_dict(facts["guided"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{folder / 'model.json'} is broken: guided has {error}; copy the model folder again"
        ) from error
    return Guide(
        hr_encoder=BatchEncoder(tower, batch=facts["encoder"]["batch"]),
        space=SharedSpace(folder / "text.safetensors"),
        config=config,
    )
