"""align: cross-scale visual prompt tuning. LR tiles learn to stand where their children stand in
the space of images and texts, and their windows of tokens say what the children say block by block.
Prompts and low-rank adapters are trained; the tower stays as it is, but for `align.how=full`."""

import logging
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lrmil_jax import cluster, methods
from lrmil_jax.data import features
from lrmil_jax.data.labels import Cohort
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.distill import cross_scale, stage1
from lrmil_jax.encoders import Transform, adapters, pretrained, prompts
from lrmil_jax.models import encoding, loading, trained
from lrmil_jax.patches import PatchSource
from lrmil_jax.processes import Workers
from lrmil_jax.selection import score, shared_space
from lrmil_jax.train.encode import Encoder, cast_ahead
from lrmil_jax.train.pairs import drawn, fit_pairs
from lrmil_jax.workspace import cohorts, feature_sets, layout, provenance, stage_files, statuses

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/align/prompts.safetensors`, `encoder.safetensors` of a tuned tower, or
    both."""
    settings = config.align
    if settings.how in ("distilled", "none"):
        log.info("align.how=%s: nothing is trained", settings.how)
        return
    provenance.record(workdir, "encoder", trained.encoder_facts(config, workdir))
    tower = trained.low_resolution(config, trained.hr_encoder(config, workdir))
    if settings.remat:
        tower = loading.rematerialised(tower)
    space = shared_space.SharedSpace(stage_files.texts_path(workdir))
    blocks = methods.of(config).layers(config, tower.module)
    params, constants, module = _parts(config, tower)
    targets, sides = _children(config, workdir, fold, blocks)
    if blocks:
        paths = [layout.shard(targets, slide_id) for slide_id in sides["train"]]
        constants["scale"] = features.target_variance(paths)
    folder = layout.stage_folder(workdir, "align", fold)
    result = fit_pairs(
        name=f"align, {layout.fold_title(fold)}",
        directory=folder / "training",
        block=settings,
        params=params,
        loss_fn=make_loss(
            module,
            tower.transform,
            space,
            blocks,
            beta=settings.beta,
            lambda_layer=settings.lambda_layer,
        ),
        constants=constants,
        **{
            side: feature_sets.pairs(config, workdir, slide_ids, targets, layers=len(blocks))
            for side, slide_ids in sides.items()
        },
        threads=config.encoder.threads,
        workers=config.encoder.workers,
        seed=config.seed,
    )
    facts = {"stage": "align", "fold": str(fold), "step": str(result.step)}
    cluster.first_only("what was tuned", _save, config, folder, tower, result.params, facts)


def _save(
    config: ConfigDict, folder: Path, tower: Encoder, params: dict, facts: dict[str, str]
) -> None:
    owner = tower.weights_hash
    if adapters.WHOLE in params or adapters.ADAPTERS in params:
        path = folder / "encoder.safetensors"
        learned = adapters.tower(params, {adapters.FROZEN: tower.params})
        pretrained.save(path, tower.name, tower.options, learned, facts)
        owner = pretrained.weights_hash(path)
    if PROMPTS in params:
        prompts.save(
            folder / "prompts.safetensors",
            np.asarray(params[PROMPTS]),
            encoder_hash=owner,
            deep=config.align.deep,
        )


PROMPTS = "prompts"  # of what is trained, beside the parts of `adapters.tower`


def _parts(config: ConfigDict, tower: Encoder) -> tuple[dict, dict, Any]:
    """What is trained, what is only used, and the module that reads LR tiles."""
    settings = config.align
    if settings.how == "full":
        return {adapters.WHOLE: tower.params}, {}, tower.module
    params, module, frozen = {}, tower.module, tower.params
    if "lora" in settings.how:
        params[adapters.ADAPTERS] = adapters.initial(frozen, rank=settings.rank, seed=config.seed)
    else:
        images = np.zeros((1, tower.module.px, tower.module.px, 3), np.float32)
        frozen = cast_ahead(
            lambda params, images: tower.module.apply({"params": params}, images).embedding,
            frozen,
            images,
        )
    if "prompts" in settings.how:
        module = prompts.Prompted(tower.module, settings.prompts, settings.deep)
        params[PROMPTS] = prompts.initial(
            tower.module, count=settings.prompts, deep=settings.deep, seed=config.seed
        )
    return params, {adapters.FROZEN: frozen}, module


def make_loss(
    module,
    transform: Transform,
    space: shared_space.SharedSpace,
    blocks: tuple[int, ...],
    *,
    beta: float,
    lambda_layer: float,
):
    """The cross-scale loss of a batch of `PatchPairs` and, with blocks, L_layer; with the terms."""

    def loss_fn(params, constants, batch, key, train):
        del key, train  # the encoder has no dropout
        tower = adapters.tower(params, constants)
        variables = {"tower": tower, PROMPTS: params[PROMPTS]} if PROMPTS in params else tower
        images = transform.normalise(batch["lr"])
        output = module.apply({"params": variables}, images, blocks=blocks)
        mask = batch["child_mask"].reshape(len(images), -1)
        target = cross_scale.children_mean(space.project(batch["child_embedding"]), mask)
        terms = cross_scale.cross_scale_loss(
            space.project(output.embedding),
            target,
            space.texts.embedding,
            scale=space.scale,
            beta=beta,
        )
        if not blocks:
            return terms
        tokens = jnp.stack([output.tokens[block] for block in blocks])
        layer = stage1.layer_term(tokens, batch, constants["scale"])
        return terms | {"loss": terms["loss"] + lambda_layer * layer, "layer": layer}

    return loss_fn


def _children(
    config: ConfigDict, workdir: Path, fold: int, blocks: tuple[int, ...]
) -> tuple[Path, dict[str, list[str]]]:
    """The folder of the children's features, encoded if need be, and the fold's slides to learn
    from, `train`, and held out, `val`."""
    cohort = cohorts.prepared(config, workdir)
    share = _share(config, workdir, cohort)
    folder = stage_files.children_folder(workdir, share, blocks)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    _encode_children(config, workdir, slide_ids, folder, share, blocks)
    cohort = cohorts.prepared(config, workdir)  # less the slides that could not be read
    sides = ("train", "val")
    return folder, {side: cohort.slides(fold, side).slide_id.tolist() for side in sides}


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
    config: ConfigDict,
    workdir: Path,
    slide_ids: list[str],
    folder: Path,
    share: float,
    blocks: tuple[int, ...],
) -> None:
    jobs, pending = encoding.missing(config, workdir, folder)
    wanted = set(slide_ids)
    jobs = [job for job in jobs if job.slide_id in wanted]
    pending = [job for job in pending if job.slide_id in wanted]
    if pending:
        _encode(config, workdir, pending, folder, share, blocks, total=len(jobs))
    statuses.meet("HR children")


def _encode(
    config: ConfigDict,
    workdir: Path,
    pending: list[SlideJob],
    folder: Path,
    share: float,
    blocks: tuple[int, ...],
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
        trained.batch_encoder(config, trained.hr_encoder(config, workdir), blocks),
        pending,
        patches,
        lambda job, source, rows: encoding.write(config, folder, job, rows, by_region=True),
        label="align: HR children",
        total=total,
    )
