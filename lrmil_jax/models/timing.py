"""What a slide costs from its file: the delivered model as it is, beside its teacher at HR."""

from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.data import labels as label_csv
from lrmil_jax.models import loading, model_folder, trained
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.progress import progress
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.workspace import cohorts, layout, stage_files


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `report/timing.json`: per model the median seconds of every phase over slides, after
    a warm-up, their sum `total`, and the `patches` that went through an encoder.

    HR is read in parent-sized blocks, and all use the same encoder batch on the same devices.
    """
    if not config.evaluate.timed_slides:
        return
    models = _models(config, workdir)
    table = cohorts.prepared(config, workdir).slides(1, "test")
    rows = list(table.head(config.evaluate.timed_slides).itertuples())
    timing = {}
    with progress("time per slide", len(models) * (len(rows) + 1)) as bar:
        for arm, model in models.items():
            measured = []
            for number, row in enumerate([rows[0], *rows]):
                result = model.predict(row.path, label_csv.given_mpp(row))
                if number:  # the first run compiles
                    total = sum(result.seconds.values())
                    counts = {"patches": result.encoded, "total": total}
                    measured.append(result.seconds | counts)
                bar.advance()
            medians = pd.DataFrame(measured).median()
            timing[arm] = {name: round(float(value), 4) for name, value in medians.items()}
    files.write_json(layout.stage_folder(workdir, "report") / "timing.json", timing)


def _models(config: ConfigDict, workdir: Path) -> dict[str, SlideModel]:
    """By arm: what `model/` holds, and what it is compared with, of fold 1."""
    settings, dtype = cohorts.tiling_settings(config), config.features.dtype
    models = {}
    if config.method in ("lrmil", "mil"):
        encoder = trained.batch_encoder(config, trained.hr_encoder(config, workdir))
        member = encoder, trained.teacher(workdir, 1)
        models["teacher"] = SlideModel(members=[member], settings=settings, dtype=dtype, high=True)
    if config.method == "mil_lr":
        tower = trained.hr_encoder(config, workdir)
        encoder = loading.low_resolution(tower, settings.geometry)
        head = BagModel.load(stage_files.baseline_head(workdir, 1))
        member = trained.batch_encoder(config, encoder), head
        models["no_distillation"] = SlideModel(members=[member], settings=settings, dtype=dtype)
    if model_folder.members(config):
        models[config.method] = model_folder.load(workdir / "model")
    return models
