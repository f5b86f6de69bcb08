"""encode_selected: the chosen LR patches' children, and no others, read and encoded at HR."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.data import features
from lrmil_jax.models import children, trained
from lrmil_jax.train.logging import progress
from lrmil_jax.workspace import cohorts, layout, stage_files


def run(config: ConfigDict, workdir: Path, fold: int) -> None:
    """Writes `folds/<k>/encode_selected/features`, and per slide how many pixels were read."""
    folder = stage_files.selected_folder(workdir, fold)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = cohorts.slide_jobs(config, workdir, cohorts.prepared(config, workdir).table)
    pending = [job for job in jobs if not layout.shard(folder, job.slide_id).is_file()]
    if not pending:
        return
    encode = trained.batch_encoder(config, trained.hr_encoder(config, workdir))

    def chosen(slide_id: str) -> list[int]:
        return stage_files.read_chosen(workdir, fold, slide_id)[1].tolist()

    with progress("encode_selected", len(jobs), done=len(jobs) - len(pending)) as bar:
        for slide, rows in children.encode(encode, config, workdir, pending, chosen):
            if rows is not None:
                name, dtype = slide.job.slide_id, config.features.dtype
                read = {str(level): pixels for level, pixels in slide.read_log.items()}
                files.write_json(folder / f"{name}.read.json", read)
                path = layout.shard(folder, name)
                features.write(path, name, rows, dtype=dtype, block=config.features.rows)
            bar.advance()
