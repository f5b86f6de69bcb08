"""encode_selected: the chosen LR patches' children, and no others, read and encoded at HR.

Folds choose much the same: a region is read and encoded once, for whichever fold comes first.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.data.features import SlideFeatures, join
from lrmil_jax.data.slide_jobs import SlideJob
from lrmil_jax.methods import delivery
from lrmil_jax.models import encoding, trained
from lrmil_jax.patches import PatchSource
from lrmil_jax.processes import Workers
from lrmil_jax.workspace import cohorts, feature_sets, layout, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/encode_selected/features`, and per slide how many pixels were read."""
    folder = stage_files.selected_folder(workdir, fold)
    jobs, pending = encoding.missing(config, workdir, folder)
    if pending:
        _encode(config, workdir, fold, pending, total=len(jobs))


def _encode(
    config: ConfigDict, workdir: Path, fold: int, pending: Sequence[SlideJob], *, total: int
) -> None:
    folder = stage_files.selected_folder(workdir, fold)
    others = [
        stage_files.selected_folder(workdir, other)
        for other in delivery.trainings(config)
        if other != fold
    ]

    def patches(job: SlideJob, readers: Workers) -> PatchSource:
        chosen = stage_files.read_chosen(workdir, fold, job.slide_id)[1]
        encoded = _of_other_folds(config, workdir, job, others, chosen)
        missing = np.setdiff1d(chosen, () if encoded is None else encoded.parent).tolist()
        return cohorts.patch_source(
            config, workdir, job, high=True, chosen=missing, encoded=encoded, readers=readers
        )

    def write(job: SlideJob, source: PatchSource, rows: SlideFeatures) -> None:
        read = {str(level): pixels for level, pixels in source.levels.items()}
        files.write_json(folder / f"{job.slide_id}.read.json", read)
        encoding.write(config, folder, job, rows)

    encoding.encode_slides(
        config,
        workdir,
        trained.batch_encoder(config, trained.hr_encoder(config, workdir)),
        pending,
        patches,
        write,
        label="encode_selected",
        total=total,
    )


def _of_other_folds(
    config: ConfigDict,
    workdir: Path,
    job: SlideJob,
    folders: Sequence[Path],
    chosen: Int[np.ndarray, " n"],
) -> SlideFeatures | None:
    """What other folds have encoded of the chosen LR patches; None if nothing."""
    parts, wanted = [], chosen
    for folder in folders:
        if len(wanted) and layout.shard(folder, job.slide_id).is_file():
            rows = feature_sets.open_store(config, workdir, folder, [job.slide_id]).rows(0)
            parts.append(rows.take(np.isin(rows.parent, wanted)))
            wanted = np.setdiff1d(wanted, parts[-1].parent)
    return join(parts) if sum(len(part.parent) for part in parts) else None
