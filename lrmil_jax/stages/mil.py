"""mil: a head on the fused features, per fold."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax.methods import delivery
from lrmil_jax.train import mil
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/mil/model.safetensors` and the model folder."""
    cohort = cohorts.prepared(config, workdir)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    path = stage_files.head(workdir, "mil", fold)
    head = mil.train_head(
        name=f"mil, {layout.fold_title(fold)}",
        directory=path.parent / "training",
        block=config.mil,
        loss=mil.SlideLoss(),
        data=feature_sets.fold_data(
            cohort, fold, feature_sets.fused_store(config, workdir, fold, slide_ids)
        ),
        seed=config.seed,
    )
    cluster.first_only("the head", head.save, path)
    delivery.export(config, workdir, fold, stage="mil")
