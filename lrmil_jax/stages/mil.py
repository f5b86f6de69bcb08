"""mil: a head on the fused features, per fold."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax.stages import align, layout, model_folder, models, text
from lrmil_jax.stages.fuse import fused_store
from lrmil_jax.stages.teacher import fold_data
from lrmil_jax.train import mil


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/mil/model.safetensors`."""
    cohort = layout.prepared_cohort(config, workdir)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    path = model_path(workdir, fold)
    mil.train_head(
        name=f"WISE-FUSE, {layout.fold_title(fold)}",
        directory=path.parent / "training",
        block=config.mil,
        loss=mil.SlideLoss(),
        data=fold_data(cohort, fold, fused_store(config, workdir, fold, slide_ids)),
        classes=cohort.classes,
        seed=config.seed,
    ).save(path)
    own = {"head.safetensors": path, **align.files_of(config, workdir, fold)}
    tower = models.hr_weights(config, workdir)
    shared = {f"encoder{tower.suffix}": tower, "text.safetensors": text.path(workdir)}
    model_folder.export(config, workdir, fold, own=own, shared=shared)


def model_path(workdir: Path, fold: int) -> Path:
    """The fold's head on fused features."""
    return layout.stage_folder(workdir, "mil", fold) / "model.safetensors"
