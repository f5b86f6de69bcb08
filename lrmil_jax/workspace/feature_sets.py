"""Encoded patches of a run's slides, as bags."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax import encoders
from lrmil_jax.data import features, schema, source
from lrmil_jax.data.cells import CellBags
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.data.patient_bags import PatientBags
from lrmil_jax.errors import DataError
from lrmil_jax.patches.pairs import PatchPairs
from lrmil_jax.selection import fuse, shared_space, windows
from lrmil_jax.train import mil
from lrmil_jax.workspace import cohorts, layout, provenance, stage_files, statuses
from lrmil_jax.workspace.teachers import OtherEncoder


def record(config: ConfigDict, workdir: Path, *, num_layers: int = 0, width: int | None = None):
    """What a feature record of this cohort holds, with CLS after `num_layers` blocks; `width` if
    it is not the encoder's."""
    facts = provenance.read(workdir)["encoder"]
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


def open_store(
    config: ConfigDict,
    workdir: Path,
    folder: Path,
    slide_ids,
    *,
    width: int | None = None,
    store: Callable[..., FeatureStore] = FeatureStore,
) -> FeatureStore:
    """Features below `folder` of some slides, in this order; `width` as for `record`, `store` what
    takes the arguments of a `FeatureStore`."""
    paths = [layout.shard(folder, slide_id) for slide_id in slide_ids]
    return store(paths, slide_ids, lambda names: parser(config, workdir, names, width=width))


def cell_store(config: ConfigDict, workdir: Path, slide_ids) -> CellBags:
    """LR features of the encoder as it is beside HR features, of some slides, in this order."""
    store = functools.partial(
        CellBags,
        high=hr_store(config, workdir, slide_ids),
        children=cohorts.geometry(config).ratio ** 2,
    )
    folder = stage_files.plain_lr_folder(config, workdir)
    return open_store(config, workdir, folder, slide_ids, store=store)


def lr_width(workdir: Path) -> int:
    """Of LR features: the encoder's, unless another tool used different ones at HR and LR."""
    facts = provenance.read(workdir)["encoder"]
    return facts.get("lr_width", facts["width"])


def student_width(config: ConfigDict, workdir: Path) -> int:
    """Of the features that a student reads: `lr_width`, unless its encoder is one of its own."""
    name = config.distill.student
    return lr_width(workdir) if name is None else encoders.create(name).embedding_width


def undistilled_store(config: ConfigDict, workdir: Path, slide_ids) -> FeatureStore:
    """LR features of the encoder as it is, of some slides, in this order."""
    folder = stage_files.plain_lr_folder(config, workdir)
    return open_store(config, workdir, folder, slide_ids, width=lr_width(workdir))


def student_store(config: ConfigDict, workdir: Path, fold: int, slide_ids) -> FeatureStore:
    """LR features that the fold's student reads, of some slides, in this order."""
    folder = stage_files.student_folder(config, workdir, fold)
    width = student_width(config, workdir)
    return open_store(config, workdir, folder, slide_ids, width=width)


def fold_data(cohort, fold: int, store: FeatureStore, **extras) -> mil.BagData:
    """Labels and splits of a fold's training and validation slides, as bags.

    Args:
      cohort: of the run.
      fold: counted from 1, or `splits.FINAL`.
      store: features of these slides, in the order of the cohort.
      extras: `per_bag` and `per_instance` of `mil.BagData`, of these slides.
    """
    table = cohort.slides(fold, "train", "val")
    if cohort.task.one_bag:
        store = PatientBags(store, table.case_id.tolist())
        table = table.iloc[store.first]
        per_bag = extras.get("per_bag", {})
        extras = extras | {"per_bag": {name: of[store.first] for name, of in per_bag.items()}}
    split = table.split.to_numpy()
    return mil.BagData(
        store=store,
        targets=cohort.task.targets(table),
        task=cohort.task.fitted(cohort.task.targets(table[table.split == "train"])),
        cases=table.case_id.tolist(),
        train=np.flatnonzero(split == "train"),
        val=np.flatnonzero(split == "val"),
        **extras,
    )


def pairs(
    config: ConfigDict,
    workdir: Path,
    slide_ids: Sequence[str],
    folder: Path,
    *,
    layers: int = 0,
    attention: Sequence[np.ndarray] | None = None,
    others: Sequence[OtherEncoder] = (),
) -> PatchPairs:
    """LR tiles of some slides beside their children's features.

    Args:
      config, workdir: of the run.
      slide_ids: in this order.
      folder: with the children's features, one record an LR patch.
      layers: blocks whose CLS is wanted too.
      attention: the teacher's logits over each slide's HR patches, or None.
      others: further encoders whose embeddings of the children are wanted.

    Raises:
      DataError: another encoder has read other patches.
    """
    beside = []
    for other in others:
        _refuse_other_places(config, workdir, folder, other, slide_ids)
        paths = [layout.shard(other.targets, slide_id) for slide_id in slide_ids]
        beside.append((paths, parser(config, other.workdir, ("embedding",))))
    names = ("embedding", "child", *(("cls",) if layers else ()))
    regions = layout.regions_folder(workdir)
    return PatchPairs(
        [layout.shard(regions, slide_id) for slide_id in slide_ids],
        [layout.shard(folder, slide_id) for slide_id in slide_ids],
        counts=[statuses.read(workdir, slide_id)["lr_patches"] for slide_id in slide_ids],
        geometry=cohorts.geometry(config),
        target_parser=parser(config, workdir, names, num_layers=layers),
        attention=attention,
        others=beside,
    )


def _refuse_other_places(
    config: ConfigDict,
    workdir: Path,
    folder: Path,
    other: OtherEncoder,
    slide_ids: Sequence[str],
) -> None:
    """Compares where the first and the last HR patch of each slide lie: with the same number of
    patches in each LR patch between them, `PatchPairs` finds all others."""
    sides = []
    for held, where in ((workdir, folder), (other.workdir, other.targets)):
        paths = [layout.shard(where, slide_id) for slide_id in slide_ids]
        sides.append(source.RecordSource(paths, parser(config, held, ("xy", "child"))))
    ends = np.cumsum([
        len(features.read_index(layout.shard(folder, slide_id))["rows"]) for slide_id in slide_ids
    ])  # fmt: skip
    for slide_id, first, last in zip(slide_ids, [0, *ends[:-1]], ends - 1, strict=True):
        for index in (int(first), int(last)):
            own, there = (side[index] if index < len(side) else {} for side in sides)
            if not all(np.array_equal(own[name], there.get(name)) for name in own):
                raise DataError(
                    f"the HR patches of slide {slide_id} in {other.workdir}, which "
                    "distill.teachers names, lie elsewhere than in this run; both must have "
                    "prepared it from the same file"
                )


def selecting_width(config: ConfigDict, workdir: Path) -> int:
    """Of the LR features by which patches are chosen: windows may be scored beside."""
    space = shared_space.SharedSpace(stage_files.texts_path(workdir))
    ratio, classes = cohorts.geometry(config).ratio, len(space.texts.classes)
    added = windows.columns(config.select.score, windows=ratio, classes=classes)
    return provenance.read(workdir)["encoder"]["width"] + added


def selecting_store(config: ConfigDict, workdir: Path, fold: int, slide_ids) -> FeatureStore:
    """LR features by which patches of some slides are chosen, in this order."""
    folder = stage_files.selecting_folder(config, workdir, fold)
    width = selecting_width(config, workdir)
    return open_store(config, workdir, folder, slide_ids, width=width)


def fused_width(config: ConfigDict, workdir: Path) -> int:
    """Of the rows."""
    own = provenance.read(workdir)["encoder"]["width"]
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
