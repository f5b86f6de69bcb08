"""baseline: what LR patches give without any distillation. The encoder as it came reads them, and
a MIL head learns from the label alone; it stands beside a distilled model, or alone."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import cluster
from lrmil_jax import config as configuration
from lrmil_jax.methods import delivery
from lrmil_jax.models import encoding, trained
from lrmil_jax.train import mil
from lrmil_jax.workspace import cohorts, feature_sets, foreign, layout, provenance, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/baseline/model.safetensors` and, once, `features/lr_undistilled`; and the
    model folder, where this is the model that the method is about."""
    provenance.record(workdir, "encoder", trained.encoder_facts(config, workdir))

    def load_encoder():
        return trained.low_resolution(config, trained.hr_encoder(config, workdir))

    if foreign.reads_slides(config):
        encoding.encode_lr(config, workdir, load_encoder, stage_files.undistilled_folder(workdir))
    path = stage_files.head(workdir, "baseline", fold)
    if not cluster.first_says("is the baseline there", path.is_file):
        _train(config, workdir, fold, path)
    delivery.export(config, workdir, fold, stage="baseline")


def _train(config: ConfigDict, workdir: Path, fold: int, path: Path) -> None:
    cohort = cohorts.prepared(config, workdir)
    slide_ids = cohort.slides(fold, "train", "val").slide_id.tolist()
    head = mil.train_head(
        name=f"LR without distillation, {layout.fold_title(fold)}",
        directory=path.parent / "training",
        block=config.student,
        loss=mil.SlideLoss(),
        data=feature_sets.fold_data(
            cohort,
            fold,
            feature_sets.undistilled_store(config, workdir, slide_ids),
        ),
        seed=configuration.seed_of(config, config.student),
    )
    cluster.first_only("the head", head.save, path)
