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
from lrmil_jax.errors import WeightsError
from lrmil_jax.stages import children, layout, models, text
from lrmil_jax.train import mil
from lrmil_jax.train.encode import Encoder
from lrmil_jax.train.logging import progress
from lrmil_jax.train.loop import fit
from lrmil_jax.train.step import Evaluator

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/align/prompts.safetensors`, or `encoder.safetensors` of a tuned tower."""
    settings = config.align
    if settings.how not in ("prompts", "full"):
        log.info("align.how=%s: nothing is trained", settings.how)
        return
    cohort = layout.prepared_cohort(config, workdir)
    layout.claim(workdir, "encoder", models.encoder_facts(config, workdir))
    sides = {side: cohort.slides(fold, side).slide_id.tolist() for side in ("train", "val")}
    _encode_children(config, workdir, [*sides["train"], *sides["val"]])
    pairs = {side: _pairs(config, workdir, slide_ids) for side, slide_ids in sides.items()}
    tower = models.low_resolution(models.hr_encoder(config, workdir), layout.geometry(config))
    space = text.SharedSpace(text.path(workdir))
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


def make_loss(tower: Encoder, module, space: text.SharedSpace, *, beta: float, tuned: str):
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


def lr_encoder(config: ConfigDict, workdir: Path, fold: int) -> Encoder:
    """The encoder that reads LR tiles in the fold, as `align.how` says.

    Raises:
      WeightsError: a file is missing, broken, or another tower's.
    """
    found, geometry = files_of(config, workdir, fold), layout.geometry(config)
    if "encoder.safetensors" in found:
        path = found["encoder.safetensors"]
        encoder = models.load_encoder(config.encoder.name, path, dtype=config.encoder.dtype)
        return models.low_resolution(encoder, geometry)
    tower = models.low_resolution(models.hr_encoder(config, workdir), geometry)
    return prompted(tower, found["prompts.safetensors"]) if found else tower


def files_of(config: ConfigDict, workdir: Path, fold: int) -> dict[str, Path]:
    """The file that makes the fold's LR encoder of the tower, by its name; {} if none is needed.

    Raises:
      WeightsError: `align.how` is "lrmil", but `align.encoder` is not set.
    """
    how, folder = config.align.how, layout.stage_folder(workdir, "align", fold)
    if how == "none":
        return {}
    if how == "lrmil":
        if config.align.encoder is None:
            raise WeightsError(
                "align.how=lrmil needs --config.align.encoder=FILE, the encoder.safetensors of "
                "LRMIL's stage 1 (folds/{fold}/distill); '{fold}' in the path is the fold"
            )
        return {
            "encoder.safetensors": Path(
                config.align.encoder.replace("{fold}", layout.fold_name(fold))
            )
        }
    name = "prompts.safetensors" if how == "prompts" else "encoder.safetensors"
    return {name: folder / name}


def prompted(tower: Encoder, path: Path) -> Encoder:
    """A tower with the prompts of a file.

    Raises:
      WeightsError: it is missing, broken, or another tower's.
    """
    values, deep = prompts.load(path, encoder_hash=tower.weights_hash)
    return Encoder(
        name=tower.name,
        options=tower.options,
        module=prompts.Prompted(tower.module, values.shape[1], deep),
        params={"tower": tower.params, "prompts": values},
        transform=tower.transform,
        weights_hash=pretrained.weights_hash(path),
    )


def children_folder(workdir: Path) -> Path:
    """HR features of training and validation slides, one record an LR patch; for all folds."""
    return layout.features_folder(workdir, "align_children")


def _encode_children(config: ConfigDict, workdir: Path, slide_ids: list[str]) -> None:
    folder = children_folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    table = layout.prepared_cohort(config, workdir).table
    jobs = layout.slide_jobs(config, workdir, table[table.slide_id.isin(slide_ids)])
    pending = [job for job in jobs if not layout.shard(folder, job.slide_id).is_file()]
    if not pending:
        return
    encode = models.batch_encoder(config, models.hr_encoder(config, workdir))
    with progress("align: HR children", len(jobs), done=len(jobs) - len(pending)) as bar:
        for slide, rows in children.encode(encode, config, workdir, pending):
            if rows is not None:
                path = layout.shard(folder, slide.job.slide_id)
                dtype = config.features.dtype
                features.write(path, slide.job.slide_id, rows, dtype=dtype, block=None)
            bar.advance()


def _pairs(config: ConfigDict, workdir: Path, slide_ids: list[str]) -> PatchPairs:
    geometry = layout.geometry(config)
    folder = children_folder(workdir)
    there = [name for name in slide_ids if layout.shard(folder, name).is_file()]
    return PatchPairs(
        [layout.shard(layout.regions_folder(workdir), slide_id) for slide_id in there],
        [layout.shard(folder, slide_id) for slide_id in there],
        counts=[layout.read_status(workdir, slide_id)["lr_patches"] for slide_id in there],
        region_parser=schema.RecordParser(schema.region_features(geometry, with_hr=False), ("lr",)),
        target_parser=models.feature_parser(config, workdir, ("embedding", "child")),
        ratio=geometry.ratio,
    )
