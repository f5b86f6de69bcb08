"""student: stage 2, slide by slide. A MIL head on LR features learns from the label and from the
teacher."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.distill import guidance
from lrmil_jax.methods import delivery
from lrmil_jax.progress import progress
from lrmil_jax.train import mil
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files

_LOSS_KEYS = (
    *("lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard"),
    *("temperature_bag", "temperature_attn", "topk", "hard"),
)


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/student/model.safetensors` and the model folder."""
    cohort = cohorts.prepared(config, workdir)
    path = stage_files.head(workdir, "student", fold)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    store = feature_sets.student_store(config, workdir, fold, slide_ids)
    mil.train_head(
        name=f"student, {layout.fold_title(fold)}",
        directory=path.parent / "training",
        block=config.student,
        loss=mil.SlideLoss(**{key: config.student[key] for key in _LOSS_KEYS}),
        data=feature_sets.fold_data(cohort, fold, store, **_teaching(config, workdir, fold, store)),
        seed=config.seed,
    ).save(path)
    delivery.export(config, workdir, fold, stage="student")


def _teaching(config: ConfigDict, workdir: Path, fold: int, store: FeatureStore) -> dict:
    """Teacher logits per slide, and per LR patch its guide and whether it has HR patches at all."""
    hr = feature_sets.hr_store(config, workdir, store.slide_ids)
    logits, guides, covered = [], [], []
    with progress("the teacher's guides", len(store.slide_ids)) as bar:
        for slide, slide_id in enumerate(store.slide_ids):
            outputs = stage_files.read_teacher(workdir, fold, slide_id)
            parent, patches = hr.places(slide)["parent"], int(store.sizes[slide])
            logits.append(outputs["logits"])
            guides.append(
                _guide(config.student.guide, outputs["attention_logits"], parent, patches)
            )
            covered.append(guidance.covered(parent, patches, parent >= 0))
            bar.advance()
    return {
        "per_bag": {"teacher_logits": np.stack(logits).astype(np.float32)},
        "per_instance": {
            "guide": np.concatenate(guides).astype(np.float32),
            "covered": np.concatenate(covered),
        },
    }


def _guide(
    how: str, attention: Float[np.ndarray, " K"], parent: Int[np.ndarray, " K"], patches: int
) -> Float[np.ndarray, " N"]:
    """The teacher's attention on one slide, brought to its LR patches as `student.guide` says."""
    present = parent >= 0  # another tool's HR patch may lie in no LR patch
    if how == "mass":
        return guidance.mass(attention, parent, patches, present)
    return guidance.pooled(attention, parent, patches, present, how)
