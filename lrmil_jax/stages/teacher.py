"""teacher: a MIL head on HR features, per fold; then its word on every slide of the fold's
training and validation patients, which is all that the student ever sees of it."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.data import param_files
from lrmil_jax.methods import delivery
from lrmil_jax.progress import progress
from lrmil_jax.train import mil
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/teacher/model.safetensors` and `outputs/<slide>.safetensors`; and the model
    folder, where the teacher is the model that the method is about."""
    cohort = cohorts.prepared(config, workdir)
    path = stage_files.head(workdir, "teacher", fold)
    store = feature_sets.hr_store(
        config, workdir, cohort.slides(fold, "train", "val").slide_id.tolist()
    )
    if not cluster.first_says("is the teacher there", path.is_file):
        head = mil.train_head(
            name=f"teacher, {layout.fold_title(fold)}",
            directory=path.parent / "training",
            block=config.teacher,
            loss=mil.SlideLoss(),
            data=feature_sets.fold_data(cohort, fold, store),
            seed=config.seed,
        )
        cluster.first_only("the teacher", head.save, path)
    delivery.export(config, workdir, fold, stage="teacher")
    paths = [stage_files.teacher_path(workdir, fold, slide_id) for slide_id in store.slide_ids]
    own = cluster.mine(range(len(paths)))
    pending = [slide for slide in own if not paths[slide].is_file()]
    if not pending:
        return
    cases = cohort.slides(fold, "train", "val").case_id.tolist()
    predictions = BagModel.load(path).on(store, cases)
    with progress("teacher's attention", len(own), done=len(own) - len(pending)) as bar:
        for slide in pending:
            logits, attention = predictions.slide(slide)
            param_files.save_params(paths[slide], {"logits": logits, "attention_logits": attention})
            bar.advance()
