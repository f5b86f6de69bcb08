"""encode_lr: LR tiles through the fold's distilled encoder."""

import functools
from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax.models import encoding, trained
from lrmil_jax.workspace import feature_sets, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/encode_lr/features`."""
    distilled = functools.partial(trained.distilled_encoder, config, workdir, fold)
    encoding.encode_lr(
        config,
        workdir,
        distilled,
        stage_files.distilled_folder(workdir, fold),
        width=feature_sets.student_width(config, workdir),
    )
