"""baseline: what LR patches give without any distillation. The encoder as it came reads them, and
a MIL head learns from the label alone; it stands beside LRMIL, and alone as method `mil_lr`."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax.models import encoding, loading, trained
from lrmil_jax.train import mil
from lrmil_jax.workspace import claims, cohorts, feature_sets, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/baseline/model.safetensors` and, once, `features/lr_undistilled`."""
    cohort = cohorts.prepared(config, workdir)
    claims.claim(workdir, "encoder", trained.encoder_facts(config, workdir))

    def load_encoder():
        return loading.low_resolution(trained.hr_encoder(config, workdir), cohorts.geometry(config))

    encoding.encode_lr(config, workdir, load_encoder, stage_files.undistilled_folder(workdir))
    path = stage_files.baseline_head(workdir, fold)
    if path.is_file():
        return
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    mil.train_head(
        name=f"LR without distillation, fold {fold}",
        directory=path.parent / "training",
        block=config.student,
        loss=mil.SlideLoss(),
        data=feature_sets.fold_data(
            cohort,
            fold,
            feature_sets.open_store(
                config, workdir, stage_files.undistilled_folder(workdir), slide_ids
            ),
        ),
        seed=config.seed,
    ).save(path)
