"""student: stage 2, slide by slide. A MIL head on LR features learns from the label and from the
teacher."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax import config as configuration
from lrmil_jax.methods import delivery
from lrmil_jax.train import mil
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files, teachers, teaching


def check(config: ConfigDict, workdir: Path, classes: tuple[str, ...]) -> None:
    """Refuses other runs whose teachers cannot teach here; see `teachers.check`."""
    del classes
    teachers.check(config, workdir, delivery.trainings(config))


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/student/model.safetensors` and the model folder."""
    teachers.check(config, workdir, (fold,))
    cohort = cohorts.prepared(config, workdir)
    path = stage_files.head(workdir, "student", fold)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    store = feature_sets.student_store(config, workdir, fold, slide_ids)
    guides = (config.student.guide,)
    said = teaching.outputs(config, workdir, fold, store, guides)
    head = mil.train_head(
        name=f"student, {layout.fold_title(fold)}",
        directory=path.parent / "training",
        block=config.student,
        loss=mil.SlideLoss.of(config.student, guides),
        data=feature_sets.fold_data(cohort, fold, store, **said),
        seed=configuration.seed_of(config, config.student),
    )
    cluster.first_only("the head", head.save, path)
    delivery.export(config, workdir, fold, stage="student")
