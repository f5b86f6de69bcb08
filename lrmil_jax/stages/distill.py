"""distill: stage 1, patch by patch. The LR encoder starts from the HR encoder and learns to say
at 5x what that one says of the children at 20x, most of all where the teacher looks."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.data import features
from lrmil_jax.distill import stage1
from lrmil_jax.encoders import adapters, pretrained
from lrmil_jax.methods import delivery
from lrmil_jax.models import loading, trained
from lrmil_jax.patches.pairs import PatchPairs
from lrmil_jax.train.encode import Encoder
from lrmil_jax.train.pairs import fit_pairs
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files, teachers

log = logging.getLogger(__name__)


def check(config: ConfigDict, workdir: Path, classes: tuple[str, ...]) -> None:
    """Refuses other runs whose teachers cannot teach here; see `teachers.check`."""
    del classes
    teachers.check(config, workdir, delivery.trainings(config))


def run(config: ConfigDict, workdir: Path, fold: int | None = None) -> None:
    """Writes `folds/<k>/distill/encoder.safetensors`; without a fold `distill/encoder.safetensors`
    of one encoder for all folds, that learns from no label and from no teacher's attention.
    """
    settings = config.distill
    teachers.check(config, workdir, delivery.trainings(config) if fold is None else (fold,))
    encoder = trained.hr_encoder(config, workdir)
    blocks = trained.layers(config, encoder.module)
    sides = _slides(config, workdir, fold)
    targets, scale = stage_files.targets_folder(workdir, blocks), np.ones(len(blocks))
    if settings.normalise and blocks:
        paths = [layout.shard(targets, slide_id) for slide_id in sides["train"]]
        scale = features.target_variance(paths)
    weight, others = _teachers(config, workdir, targets, sides["train"])
    learner = _Learner(config, encoder, blocks, weight, others)
    pairs = {side: _pairs(config, workdir, fold, sides[side], blocks, others) for side in sides}
    folder = layout.stage_folder(workdir, "distill", fold)
    result = fit_pairs(
        name="distill" if fold is None else f"distill, {layout.fold_title(fold)}",
        directory=folder / "training",
        block=settings,
        params=learner.params,
        loss_fn=learner.loss_fn,
        constants=learner.constants | {"scale": scale.astype(np.float32)},
        **pairs,
        threads=config.encoder.threads,
        workers=config.encoder.workers,
        seed=config.seed,
    )
    cluster.first_only(
        "the encoder", pretrained.save,
        folder / "encoder.safetensors", learner.reader.name, learner.reader.options,
        learner.encoder(result.params),
        {"stage": "distill", "fold": "all" if fold is None else str(fold),
         "step": str(result.step)},
    )  # fmt: skip


class _Learner:
    """What learns in stage 1: the HR encoder itself, adapters of it, or an encoder of another shape
    with the linear maps that compare the two; and the maps to further HR encoders.

    Attributes:
      reader: the LR encoder as it reads tiles, before training.
      params, constants, loss_fn: as `fit` takes them.
    """

    def __init__(
        self,
        config: ConfigDict,
        teacher: Encoder,
        blocks: tuple[int, ...],
        weight: float,
        others: Sequence[teachers.OtherEncoder],
    ):
        """
        Args:
          config: of the run.
          teacher: its HR encoder.
          blocks: of L_layer.
          weight: of that encoder's L_attn; 1 where no other run has the same encoder.
          others: further HR encoders.
        """
        settings, own = config.distill, trained.has_student(config)
        reader = trained.student(config) if own else trained.low_resolution(config, teacher)
        self.reader = loading.rematerialised(reader) if settings.remat else reader
        self._adapted = settings.rank > 0
        self.params, self.constants = reader.params, {}
        depth, deepest = reader.module.depth, teacher.module.depth
        loss_fn = stage1.make_loss(
            self.reader.module,
            self.reader.transform,
            stage1.answering(blocks, depth=depth, teacher_depth=deepest) if own else blocks,
            lambda_layer=settings.lambda_layer,
            lambda_attn=weight * settings.lambda_attn,
            projected=own,
            others=[settings.lambda_attn * other.weight for other in others],
        )
        maps = stage1.other_maps(reader.module, [one.width for one in others], seed=config.seed)
        if own:
            maps |= stage1.projections(
                reader.module, teacher.module, layers=len(blocks), seed=config.seed
            )
        self._part = None
        if self._adapted:
            self.constants = {adapters.FROZEN: reader.params}
            self.params = adapters.initial(reader.params, rank=settings.rank, seed=config.seed)
            loss_fn = loss_fn if maps else adapters.of_constants(loss_fn)
        if maps:
            self._part = adapters.ADAPTERS if self._adapted else adapters.WHOLE
            self.params = {self._part: self.params, "projections": maps}
        self.loss_fn = loss_fn

    def encoder(self, params: dict[str, Any]) -> dict[str, Any]:
        """The LR encoder's parameters, of what has learned."""
        params = params if self._part is None else params[self._part]
        return adapters.merged(self.reader.params, params) if self._adapted else params


def _teachers(
    config: ConfigDict, workdir: Path, targets: Path, slide_ids: Sequence[str]
) -> tuple[float, tuple[teachers.OtherEncoder, ...]]:
    """What this run's HR encoder weighs in L_attn, and the encoders of other runs; with
    `distill.normalise` on the scale of this run's embeddings, so that weights compare."""
    settings = config.distill
    if not settings.lambda_attn:
        return 1.0, ()
    weight, others = teachers.encoders(config, workdir)
    if not settings.normalise:
        return weight, others

    def variance(folder: Path) -> float:
        paths = [layout.shard(folder, slide_id) for slide_id in slide_ids]
        return max(float(features.moments(paths, "embedding")[1].mean()), 1e-12)

    scaled = (
        dataclasses.replace(one, weight=one.weight * variance(targets) / variance(one.targets))
        for one in others
    )
    return weight, tuple(scaled)


def _slides(config: ConfigDict, workdir: Path, fold: int | None) -> dict[str, list[str]]:
    """Slides to learn from, `train`, and held out, `val`: the fold's; for all folds those that no
    fold tests, or all where every slide is tested once, a tenth of the patients being held out.
    """
    cohort = cohorts.prepared(config, workdir)
    if fold is not None:
        return {side: cohort.slides(fold, side).slide_id.tolist() for side in ("train", "val")}
    tested = (cohort.table.filter(regex=r"^fold_\d+$") == "test").any(axis=1)
    known = cohort.table[~tested]
    if known.empty:
        known = cohort.table
        log.info("every slide is tested in some fold, so stage 1 learns from all, without labels")
    patients = np.random.default_rng(config.seed).permutation(np.unique(known.patient_id))
    held = known.patient_id.isin(patients[: max(1, len(patients) // 10)])
    return {"train": known[~held].slide_id.tolist(), "val": known[held].slide_id.tolist()}


def _pairs(
    config: ConfigDict,
    workdir: Path,
    fold: int | None,
    slide_ids: list[str],
    blocks: tuple[int, ...],
    others: Sequence[teachers.OtherEncoder],
) -> PatchPairs:
    attention = None
    if fold is not None:
        words = [stage_files.read_teacher(workdir, fold, slide_id) for slide_id in slide_ids]
        attention = [word["attention_logits"] for word in words]
    return feature_sets.pairs(
        config,
        workdir,
        slide_ids,
        stage_files.targets_folder(workdir, blocks),
        layers=len(blocks),
        attention=attention,
        others=others,
    )
