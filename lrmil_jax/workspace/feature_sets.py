"""Encoded patches of a run's slides, as bags."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.data import schema
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.selection import fuse, shared_space
from lrmil_jax.train import mil
from lrmil_jax.workspace import claims, cohorts, layout, stage_files


def record(config: ConfigDict, workdir: Path, *, num_layers: int = 0, width: int | None = None):
    """What a feature record of this cohort holds, with CLS after `num_layers` blocks; `width` if
    it is not the encoder's."""
    facts = claims.read(workdir)["encoder"]
    return schema.patch_features(
        width=facts["width"] if width is None else width,
        ratio=cohorts.geometry(config).ratio,
        dtype=facts["dtype"],
        layers=num_layers,
        layer_width=facts["layer_width"],
    )


def parser(
    config: ConfigDict,
    workdir: Path,
    names: tuple[str, ...],
    *,
    num_layers: int = 0,
    width: int | None = None,
) -> schema.RecordParser:
    """Reads the named parts of this cohort's feature records."""
    whole = record(config, workdir, num_layers=num_layers, width=width)
    return schema.RecordParser(whole, names)


def hr_store(config: ConfigDict, workdir: Path, slide_ids) -> FeatureStore:
    """HR features of some slides, in this order."""
    return open_store(config, workdir, layout.features_folder(workdir, "hr"), slide_ids)


def open_store(config: ConfigDict, workdir: Path, folder: Path, slide_ids) -> FeatureStore:
    """Features below `folder` of some slides, in this order."""
    paths = [layout.shard(folder, slide_id) for slide_id in slide_ids]
    return FeatureStore(paths, slide_ids, lambda names: parser(config, workdir, names))


def fold_data(cohort, fold: int, store: FeatureStore, **extras) -> mil.BagData:
    """Labels and splits of a fold's training and validation slides, as bags."""
    table = cohort.slides(fold, "train", "val")
    split = table.split.to_numpy()
    return mil.BagData(
        store=store,
        labels=table.label.to_numpy(np.int32),
        cases=table.case_id.tolist(),
        train=np.flatnonzero(split == "train"),
        val=np.flatnonzero(split == "val"),
        **extras,
    )


def fused_width(config: ConfigDict, workdir: Path) -> int:
    """Of the rows."""
    own = claims.read(workdir)["encoder"]["width"]
    if config.fuse.how == "none":
        return own
    shared = shared_space.SharedSpace(stage_files.texts_path(workdir)).texts.embedding.shape[1]
    return fuse.width(config.fuse.how, own, shared)


def fused_store(config: ConfigDict, workdir: Path, fold: int, slide_ids: list[str]) -> FeatureStore:
    """Fused features of some slides, in this order."""
    paths = [
        layout.shard(stage_files.fused_folder(workdir, fold), slide_id) for slide_id in slide_ids
    ]
    own = fused_width(config, workdir)
    return FeatureStore(paths, slide_ids, lambda names: parser(config, workdir, names, width=own))
