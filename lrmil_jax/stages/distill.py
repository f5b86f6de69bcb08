"""distill: stage 1, patch by patch. The LR encoder starts from the HR encoder and learns to say
at 5x what that one says of the children at 20x, most of all where the teacher looks."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.data import features
from lrmil_jax.distill import stage1
from lrmil_jax.encoders import adapters, pretrained
from lrmil_jax.models import loading, trained
from lrmil_jax.patches.pairs import PatchPairs
from lrmil_jax.train.encode import Encoder
from lrmil_jax.train.pairs import fit_pairs
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/distill/encoder.safetensors`."""
    settings = config.distill
    encoder = trained.hr_encoder(config, workdir)
    blocks = trained.layers(config, encoder.module)
    scale = np.ones(len(blocks), np.float32)
    if settings.normalise and blocks:
        scale = features.target_variance(_targets(config, workdir, fold, "train", blocks))
    learner = _Learner(config, encoder, blocks)
    folder = layout.stage_folder(workdir, "distill", fold)
    result = fit_pairs(
        name=f"distill, {layout.fold_title(fold)}",
        directory=folder / "training",
        block=settings,
        params=learner.params,
        loss_fn=learner.loss_fn,
        constants=learner.constants | {"scale": scale.astype(np.float32)},
        train=_pairs(config, workdir, fold, "train", blocks),
        val=_pairs(config, workdir, fold, "val", blocks),
        threads=config.encoder.threads,
        workers=config.encoder.workers,
        seed=config.seed,
    )
    cluster.first_only(
        "the encoder", pretrained.save,
        folder / "encoder.safetensors", learner.reader.name, learner.reader.options,
        learner.encoder(result.params),
        {"stage": "distill", "fold": str(fold), "step": str(result.step)},
    )  # fmt: skip


class _Learner:
    """What learns in stage 1: the HR encoder itself, adapters of it, or an encoder of another shape
    with the linear maps that compare the two.

    Attributes:
      reader: the LR encoder as it reads tiles, before training.
      params, constants, loss_fn: as `fit` takes them.
    """

    def __init__(self, config: ConfigDict, teacher: Encoder, blocks: tuple[int, ...]):
        settings, own = config.distill, trained.has_student(config)
        reader = trained.student(config) if own else trained.low_resolution(config, teacher)
        self.reader = loading.rematerialised(reader) if settings.remat else reader
        self._form = "projected" if own else "adapted" if settings.rank else "whole"
        self.params, self.constants = reader.params, {}
        depth, deepest = reader.module.depth, teacher.module.depth
        loss_fn = stage1.make_loss(
            self.reader.module,
            self.reader.transform,
            stage1.answering(blocks, depth=depth, teacher_depth=deepest) if own else blocks,
            lambda_layer=settings.lambda_layer,
            lambda_attn=settings.lambda_attn,
            projected=own,
        )
        if self._form == "projected":
            maps = stage1.projections(
                reader.module, teacher.module, layers=len(blocks), seed=config.seed
            )
            self.params = {"encoder": reader.params, "projections": maps}
        if self._form == "adapted":
            self.constants, loss_fn = {"tower": reader.params}, adapters.of_constants(loss_fn)
            self.params = adapters.initial(reader.params, rank=settings.rank, seed=config.seed)
        self.loss_fn = loss_fn

    def encoder(self, params: dict[str, Any]) -> dict[str, Any]:
        """The LR encoder's parameters, of what has learned."""
        if self._form == "adapted":
            return adapters.merged(self.reader.params, params)
        return params["encoder"] if self._form == "projected" else params


def _pairs(
    config: ConfigDict, workdir: Path, fold: int, split: str, blocks: tuple[int, ...]
) -> PatchPairs:
    slide_ids = cohorts.prepared(config, workdir).slides(fold, split).slide_id.tolist()
    words = [stage_files.read_teacher(workdir, fold, slide_id) for slide_id in slide_ids]
    return feature_sets.pairs(
        config,
        workdir,
        slide_ids,
        stage_files.targets_folder(workdir, blocks),
        layers=len(blocks),
        attention=[word["attention_logits"] for word in words],
    )


def _targets(
    config: ConfigDict, workdir: Path, fold: int, split: str, blocks: tuple[int, ...]
) -> list[Path]:
    folder = stage_files.targets_folder(workdir, blocks)
    slides = cohorts.prepared(config, workdir).slides(fold, split)
    return [layout.shard(folder, slide_id) for slide_id in slides.slide_id]
