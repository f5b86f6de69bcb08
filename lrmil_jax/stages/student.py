"""student: stage 2, slide by slide. A MIL head on LR features learns from the label and from the
teacher."""

import shutil
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import files
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.distill import guidance
from lrmil_jax.encoders import pretrained
from lrmil_jax.stages import layout, models
from lrmil_jax.stages.encode_lr import distilled_folder
from lrmil_jax.stages.teacher import fold_data, hr_store, open_store, read_outputs
from lrmil_jax.train import mil

_LOSS_KEYS = (
    *("lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard"),
    *("temperature_bag", "temperature_attn", "topk", "hard"),
)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/student/lrmil.safetensors` and the model folder."""
    cohort = layout.prepared_cohort(config, workdir)
    folder = layout.stage_folder(workdir, "student", fold)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    store = open_store(config, workdir, distilled_folder(workdir, fold), slide_ids)
    mil.train_head(
        name=f"student, fold {fold}",
        directory=folder / "training",
        block=config.student,
        loss=mil.SlideLoss(**{key: config.student[key] for key in _LOSS_KEYS}),
        data=fold_data(cohort, fold, store, **_teaching(config, workdir, fold, store)),
        classes=cohort.classes,
        seed=config.seed,
    ).save(folder / "lrmil.safetensors")
    export_model(config, workdir, fold)


def _teaching(config: ConfigDict, workdir: Path, fold: int, store: FeatureStore) -> dict:
    """Teacher logits per slide, and per LR patch its guide and whether it has HR patches at all."""
    hr = hr_store(config, workdir, store.slide_ids)
    logits, guides, covered = [], [], []
    for slide, slide_id in enumerate(store.slide_ids):
        outputs = read_outputs(workdir, fold, slide_id)
        parent = hr.places(slide)["parent"]
        patches = int(store.sizes[slide])
        present = np.ones(len(parent), bool)
        attention = outputs["attention_logits"]
        if config.student.guide == "mass":
            guide = guidance.mass(attention, parent, patches, present)
        else:
            guide = guidance.pooled(attention, parent, patches, present, config.student.guide)
        logits.append(outputs["logits"])
        guides.append(np.asarray(guide))
        covered.append(np.asarray(guidance.covered(parent, patches, present)))
    return {
        "per_bag": {"teacher_logits": np.stack(logits).astype(np.float32)},
        "per_instance": {
            "guide": np.concatenate(guides).astype(np.float32),
            "covered": np.concatenate(covered),
        },
    }


def export_model(config: ConfigDict, workdir: Path, fold: int) -> Path:
    """Makes `folds/<k>/student/model`: all that `predict` needs of this fold, nothing else."""
    folder = layout.stage_folder(workdir, "student", fold) / "model"
    encoder = models.distilled_encoder(config, workdir, fold)
    settings = configuration.flatten(config)
    prepare = ("prepare.reader", "prepare.tissue_mpp", "prepare.min_tissue")
    facts = {
        "schema": 1,
        "method": config.method,
        "classes": list(layout.prepared_cohort(config, workdir).classes),
        "geometry": dict(config.geometry),
        "prepare": {key.removeprefix("prepare."): settings[key] for key in prepare},
        "encoder": {
            "name": encoder.name,
            "batch": config.encoder.batch,
            "dtype": config.encoder.dtype,
        },
        "features_dtype": config.features.dtype,
        "made_by": layout.read_claims(workdir),
    }
    part = folder / f"fold_{fold}"
    part.mkdir(parents=True, exist_ok=True)
    stage_one = layout.stage_folder(workdir, "distill", fold) / "encoder.safetensors"
    copies = {
        part / "encoder.safetensors": stage_one,
        part / "head.safetensors": folder.parent / "lrmil.safetensors",
    }
    for target, origin in copies.items():
        with files.atomic_path(target) as temporary:
            shutil.copyfile(origin, temporary)
    facts["sha256"] = {
        str(target.relative_to(folder)): pretrained.weights_hash(target) for target in copies
    }
    files.write_json(folder / "model.json", facts)
    return folder
