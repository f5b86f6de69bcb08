"""distill: stage 1, patch by patch. The LR encoder starts from the HR encoder and learns to say
at 5x what that one says of the children at 20x, most of all where the teacher looks."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.data import features
from lrmil_jax.distill import stage1
from lrmil_jax.encoders import adapters, pretrained
from lrmil_jax.models import loading, trained
from lrmil_jax.patches.pairs import PatchPairs
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
    reader = trained.low_resolution(config, encoder)
    if settings.remat:
        reader = loading.rematerialised(reader)
    loss_fn = stage1.make_loss(
        reader.module,
        reader.transform,
        blocks,
        lambda_layer=settings.lambda_layer,
        lambda_attn=settings.lambda_attn,
    )
    params, constants = encoder.params, {"scale": scale}
    if settings.rank:
        constants, loss_fn = constants | {"tower": params}, adapters.of_constants(loss_fn)
        params = adapters.initial(params, rank=settings.rank, seed=config.seed)
    folder = layout.stage_folder(workdir, "distill", fold)
    result = fit_pairs(
        name=f"distill, {layout.fold_title(fold)}",
        directory=folder / "training",
        block=settings,
        params=params,
        loss_fn=loss_fn,
        constants=constants,
        train=_pairs(config, workdir, fold, "train", blocks),
        val=_pairs(config, workdir, fold, "val", blocks),
        threads=config.encoder.threads,
        workers=config.encoder.workers,
        seed=config.seed,
    )
    learned = adapters.merged(encoder.params, result.params) if settings.rank else result.params
    cluster.first_only(
        "the encoder", pretrained.save,
        folder / "encoder.safetensors", encoder.name, encoder.options, learned,
        {"stage": "distill", "fold": str(fold), "step": str(result.step)},
    )  # fmt: skip


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
