"""align: cross-scale visual prompt tuning. LR tiles learn to stand where their children stand in
the space of images and texts; the tower stays frozen, prompts alone are trained."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.data.labels import Cohort
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.distill import cross_scale
from lrmil_jax.encoders import pretrained, prompts
from lrmil_jax.models import encoding, loading, trained
from lrmil_jax.patches import PatchSource
from lrmil_jax.patches.pairs import PatchPairs
from lrmil_jax.processes import Workers
from lrmil_jax.selection import score, shared_space
from lrmil_jax.train.encode import Encoder, cast_ahead
from lrmil_jax.train.pairs import drawn, fit_pairs
from lrmil_jax.workspace import cohorts, feature_sets, layout, provenance, stage_files, statuses

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/align/prompts.safetensors`, or `encoder.safetensors` of a tuned tower."""
    settings = config.align
    if settings.how not in ("prompts", "full"):
        log.info("align.how=%s: nothing is trained", settings.how)
        return
    provenance.record(workdir, "encoder", trained.encoder_facts(config, workdir))
    tower = trained.low_resolution(config, trained.hr_encoder(config, workdir))
    if settings.remat:
        tower = loading.rematerialised(tower)
    space = shared_space.SharedSpace(stage_files.texts_path(workdir))
    params, constants, module = _parts(config, tower)
    folder = layout.stage_folder(workdir, "align", fold)
    result = fit_pairs(
        name=f"align, {layout.fold_title(fold)}",
        directory=folder / "training",
        block=settings,
        params=params,
        loss_fn=make_loss(tower, module, space, beta=settings.beta, tuned=settings.how),
        constants=constants,
        **_pairs(config, workdir, fold),
        threads=config.encoder.threads,
        workers=config.encoder.workers,
        seed=config.seed,
    )
    facts = {"stage": "align", "fold": str(fold), "step": str(result.step)}
    cluster.first_only("what was tuned", _save, config, folder, tower, result.params, facts)


def _save(
    config: ConfigDict, folder: Path, tower: Encoder, params: dict, facts: dict[str, str]
) -> None:
    if config.align.how == "prompts":
        prompts.save(
            folder / "prompts.safetensors",
            np.asarray(params["prompts"]),
            encoder_hash=tower.weights_hash,
            deep=config.align.deep,
        )
    else:
        path = folder / "encoder.safetensors"
        pretrained.save(path, tower.name, tower.options, params, facts)


def _parts(config: ConfigDict, tower: Encoder) -> tuple[dict, dict, Any]:
    """What is trained, what is only used, and the module that reads LR tiles."""
    settings = config.align
    if settings.how == "full":
        return tower.params, {}, tower.module
    module = prompts.Prompted(tower.module, settings.prompts, settings.deep)
    start = prompts.initial(
        tower.module, count=settings.prompts, deep=settings.deep, seed=config.seed
    )
    images = np.zeros((1, tower.module.px, tower.module.px, 3), np.float32)
    frozen = cast_ahead(
        lambda params, images: tower.module.apply({"params": params}, images).embedding,
        tower.params,
        images,
    )
    return {"prompts": start}, {"tower": frozen}, module


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


def _pairs(config: ConfigDict, workdir: Path, fold: int) -> dict[str, PatchPairs]:
    """The fold's pairs to learn from, `train`, and held out, `val`."""
    cohort = cohorts.prepared(config, workdir)
    share = _share(config, workdir, cohort)
    folder = stage_files.children_folder(workdir, share)
    sides = {side: cohort.slides(fold, side).slide_id.tolist() for side in ("train", "val")}
    _encode_children(config, workdir, [*sides["train"], *sides["val"]], folder, share)
    cohort = cohorts.prepared(config, workdir)  # less the slides that could not be read
    found = {}
    for side in sides:
        slide_ids = cohort.slides(fold, side).slide_id.tolist()
        found[side] = feature_sets.pairs(config, workdir, slide_ids, folder)
    return found


def _share(config: ConfigDict, workdir: Path, cohort: Cohort) -> float:
    """Of every slide's LR patches, those whose children are encoded: as many as are drawn in the
    fold with the fewest, and the same for all folds, which so share them."""
    patches = {
        slide_id: statuses.read(workdir, slide_id)["lr_patches"]
        for slide_id in cohort.table.slide_id
    }
    smallest = min(
        sum(patches[slide_id] for slide_id in cohort.slides(fold, "train").slide_id)
        for fold in range(1, config.folds + 1)
    )
    # Up to the next ten-thousandth: the folder's name says it.
    return min(1.0, math.ceil(1e4 * drawn(config.align) / smallest) / 1e4)


def _encode_children(
    config: ConfigDict, workdir: Path, slide_ids: list[str], folder: Path, share: float
) -> None:
    jobs, pending = encoding.missing(config, workdir, folder)
    wanted = set(slide_ids)
    jobs = [job for job in jobs if job.slide_id in wanted]
    pending = [job for job in pending if job.slide_id in wanted]
    if pending:
        _encode(config, workdir, pending, folder, share, total=len(jobs))
    statuses.meet("HR children")


def _encode(
    config: ConfigDict,
    workdir: Path,
    pending: list[SlideJob],
    folder: Path,
    share: float,
    *,
    total: int,
) -> None:
    def patches(job: SlideJob, readers: Workers) -> PatchSource:
        count = statuses.read(workdir, job.slide_id)["lr_patches"]
        chosen = score.select_random(
            count, math.ceil(share * count), seed=config.seed, slide_id=job.slide_id
        )
        return cohorts.patch_source(
            config, workdir, job, high=True, chosen=chosen.tolist(), readers=readers
        )

    encoding.encode_slides(
        config,
        workdir,
        trained.batch_encoder(config, trained.hr_encoder(config, workdir)),
        pending,
        patches,
        lambda job, source, rows: encoding.write(config, folder, job, rows, by_region=True),
        label="align: HR children",
        total=total,
    )
