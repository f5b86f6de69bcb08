"""What a fold's teachers say of the slides that a student learns from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.distill import guidance
from lrmil_jax.progress import progress
from lrmil_jax.tasks import Task
from lrmil_jax.workspace import cohorts, feature_sets, stage_files, teachers


def outputs(
    config: ConfigDict, workdir: Path, fold: int, store: FeatureStore, guides: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Teacher logits per slide, and per LR patch its guides and whether it has HR patches at all.

    With teachers of other runs (`distill.teachers`) the logits are those of all of them together
    (`Task.ensembled`); the guides are of this run's own.

    Args:
      config, workdir, fold: of the run.
      store: LR features of the slides.
      guides: ways of `student.guide`.

    Returns:
      `per_bag` and `per_instance` of `mil.BagData`; `guide` is [rows, G] of G guides.
    """
    hr = feature_sets.hr_store(config, workdir, store.slide_ids)
    others = teachers.named(config)
    logits, guided, covered = [], [], []
    with progress("the teacher's guides", len(store.slide_ids)) as bar:
        for slide, slide_id in enumerate(store.slide_ids):
            said = stage_files.read_teacher(workdir, fold, slide_id)
            parent, patches = hr.places(slide)["parent"], int(store.sizes[slide])
            beside = (stage_files.read_teacher(one.folder, fold, slide_id) for one in others)
            logits.append(np.stack([said["logits"], *(one["logits"] for one in beside)]))
            each = [_guide(how, said["attention_logits"], parent, patches) for how in guides]
            guided.append(np.stack(each, -1))
            covered.append(guidance.covered(parent, patches, parent >= 0))
            bar.advance()
    every = np.stack(logits, 1)
    together = every[0]
    if others:
        weights = [1.0, *(one.weight for one in others)]
        together = _task(config, workdir, fold).ensembled(every, weights)
    return {
        "per_bag": {"teacher_logits": together.astype(np.float32)},
        "per_instance": {
            "guide": np.concatenate(guided).astype(np.float32),
            "covered": np.concatenate(covered),
        },
    }


def _task(config: ConfigDict, workdir: Path, fold: int) -> Task:
    """With the scale of the fold's training slides."""
    cohort = cohorts.prepared(config, workdir)
    return cohort.task.fitted(cohort.task.targets(cohort.slides(fold, "train")))


def _guide(
    how: str, attention: Float[np.ndarray, " K"], parent: Int[np.ndarray, " K"], patches: int
) -> Float[np.ndarray, " N"]:
    """The teacher's attention on one slide, brought to its LR patches."""
    present = parent >= 0  # another tool's HR patch may lie in no LR patch
    if how == "mass":
        return guidance.mass(attention, parent, patches, present)
    return guidance.pooled(attention, parent, patches, present, how)
