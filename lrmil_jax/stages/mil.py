"""mil: a head on the fused features, per fold."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax.models import model_folder, trained
from lrmil_jax.train import mil
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/mil/model.safetensors`."""
    cohort = cohorts.prepared(config, workdir)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    path = stage_files.fused_head(workdir, fold)
    mil.train_head(
        name=f"WISE-FUSE, {layout.fold_title(fold)}",
        directory=path.parent / "training",
        block=config.mil,
        loss=mil.SlideLoss(),
        data=feature_sets.fold_data(
            cohort, fold, feature_sets.fused_store(config, workdir, fold, slide_ids)
        ),
        seed=config.seed,
    ).save(path)
    own = {"head.safetensors": path, **trained.lr_encoder_files(config, workdir, fold)}
    tower = trained.hr_weights(config, workdir)
    shared = {f"encoder{tower.suffix}": tower, "text.safetensors": stage_files.texts_path(workdir)}
    model_folder.export(config, workdir, fold, own=own, shared=shared)
