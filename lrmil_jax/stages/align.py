"""align: cross-scale visual prompt tuning. LR tiles learn to stand where their children stand in
the space of images and texts; the tower stays frozen, prompts alone are trained."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax.data import features, schema
from lrmil_jax.data.pairs import PatchPairs
from lrmil_jax.distill import cross_scale
from lrmil_jax.encoders import pretrained, prompts
from lrmil_jax.models import children, loading, trained
from lrmil_jax.selection import shared_space
from lrmil_jax.train import mil
from lrmil_jax.train.encode import Encoder
from lrmil_jax.train.logging import progress
from lrmil_jax.train.loop import fit
from lrmil_jax.train.step import Evaluator
from lrmil_jax.workspace import claims, cohorts, feature_sets, layout, stage_files, statuses

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/align/prompts.safetensors`, or `encoder.safetensors` of a tuned tower."""
    settings = config.align
    if settings.how not in ("prompts", "full"):
        log.info("align.how=%s: nothing is trained", settings.how)
        return
    cohort = cohorts.prepared(config, workdir)
    claims.claim(workdir, "encoder", trained.encoder_facts(config, workdir))
    sides = {side: cohort.slides(fold, side).slide_id.tolist() for side in ("train", "val")}
    _encode_children(config, workdir, [*sides["train"], *sides["val"]])
    pairs = {side: _pairs(config, workdir, slide_ids) for side, slide_ids in sides.items()}
    tower = loading.low_resolution(trained.hr_encoder(config, workdir), cohorts.geometry(config))
    space = shared_space.SharedSpace(stage_files.texts_path(workdir))
    params, constants, module = _parts(config, tower)
    loss_fn = make_loss(tower, module, space, beta=settings.beta, tuned=settings.how)
    evaluator = Evaluator(loss_fn, constants=constants)
    held_out = pairs["val"].sample(batch=settings.batch, most=settings.val_patches)
    folder = layout.stage_folder(workdir, "align", fold)
    result = fit(
        name=f"align, fold {fold}",
        directory=folder / "training",
        params=params,
        loss_fn=loss_fn,
        batches=pairs["train"].batches(
            batch=settings.batch,
            seed=config.seed,
            steps=settings.steps * settings.accumulate,
            threads=config.encoder.threads,
            flips=settings.flips,
        ),
        validate=lambda params: evaluator(params, held_out),
        settings=mil.train_settings(settings, steps=settings.steps, accumulate=settings.accumulate),
        constants=constants,
        seed=config.seed,
    )
    if settings.how == "prompts":
        prompts.save(
            folder / "prompts.safetensors",
            np.asarray(result.params["prompts"]),
            encoder_hash=tower.weights_hash,
            deep=settings.deep,
        )
    else:
        facts = {"stage": "align", "fold": str(fold), "step": str(result.step)}
        path = folder / "encoder.safetensors"
        pretrained.save(path, tower.name, tower.options, result.params, facts)


def _parts(config: ConfigDict, tower: Encoder) -> tuple[dict, dict, Any]:
    """What is trained, what is only used, and the module that reads LR tiles."""
    settings = config.align
    if settings.how == "full":
        return tower.params, {}, tower.module
    module = prompts.Prompted(tower.module, settings.prompts, settings.deep)
    start = prompts.initial(
        tower.module, count=settings.prompts, deep=settings.deep, seed=config.seed
    )
    return {"prompts": start}, {"tower": tower.params}, module


def make_loss(tower: Encoder, module, space: shared_space.SharedSpace, *, beta: float, tuned: str):
    """The cross-scale loss of a batch of `PatchPairs`, with its two terms."""

    def loss_fn(params, constants, batch, key, train):
        del key, train  # the encoder has no dropout
        variables = {**constants, **params} if tuned == "prompts" else params
        images = tower.transform.normalise(batch["lr"])
        seen = module.apply({"params": variables}, images).embedding
        mask = batch["child_mask"].reshape(len(images), -1)
        target = cross_scale.children_mean(space.project(batch["child_embedding"]), mask)
        return cross_scale.cross_scale_loss(
            space.project(seen), target, space.texts.embedding, scale=space.scale, beta=beta
        )

    return loss_fn


def _encode_children(config: ConfigDict, workdir: Path, slide_ids: list[str]) -> None:
    folder = stage_files.children_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    table = cohorts.prepared(config, workdir).table
    jobs = cohorts.slide_jobs(config, workdir, table[table.slide_id.isin(slide_ids)])
    pending = [job for job in jobs if not layout.shard(folder, job.slide_id).is_file()]
    if not pending:
        return
    encode = trained.batch_encoder(config, trained.hr_encoder(config, workdir))
    with progress("align: HR children", len(jobs), done=len(jobs) - len(pending)) as bar:
        for slide, rows in children.encode(encode, config, workdir, pending):
            if rows is not None:
                path = layout.shard(folder, slide.job.slide_id)
                dtype = config.features.dtype
                features.write(path, slide.job.slide_id, rows, dtype=dtype, block=None)
            bar.advance()


def _pairs(config: ConfigDict, workdir: Path, slide_ids: list[str]) -> PatchPairs:
    geometry = cohorts.geometry(config)
    folder = stage_files.children_folder(workdir)
    there = [name for name in slide_ids if layout.shard(folder, name).is_file()]
    return PatchPairs(
        [layout.shard(layout.regions_folder(workdir), slide_id) for slide_id in there],
        [layout.shard(folder, slide_id) for slide_id in there],
        counts=[statuses.read(workdir, slide_id)["lr_patches"] for slide_id in there],
        region_parser=schema.RecordParser(schema.region_features(geometry, with_hr=False), ("lr",)),
        target_parser=feature_sets.parser(config, workdir, ("embedding", "child")),
        ratio=geometry.ratio,
    )
