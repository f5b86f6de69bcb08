"""What a slide costs from its file: the delivered model as it is, beside those it is held
against."""

from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import files, methods
from lrmil_jax.data import slide_files
from lrmil_jax.models import model_folder
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.progress import progress
from lrmil_jax.workspace import cohorts, foreign, layout


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `report/timing.json`: per model the median seconds of every phase over slides, after
    a warm-up, their sum `total`, and the `patches` that went through an encoder.

    HR is read in parent-sized blocks, and all use the same encoder batch on the same devices.
    """
    if not config.evaluate.timed_slides or not foreign.reads_slides(config):
        return
    models = slide_models(config, workdir)
    table = cohorts.prepared(config, workdir).slides(1, "test")
    rows = list(table.head(config.evaluate.timed_slides).itertuples())
    timing, drawn = {}, cohorts.annotations(config, table)
    with progress("time per slide", len(models) * (len(rows) + 1)) as bar:
        for name, model in models.items():
            measured = []
            for number, row in enumerate([rows[0], *rows]):
                result = model.predict(
                    row.path,
                    slide_files.given_mpp(row),
                    trust_mpp=config.data.trust_mpp,
                    annotations=drawn.get(row.slide_id),
                )
                if number:  # the first run compiles
                    total = sum(result.seconds.values())
                    counts = {"patches": result.encoded, "total": total}
                    measured.append(result.seconds | counts)
                bar.advance()
            medians = pd.DataFrame(measured).median()
            timing[name] = {key: round(float(value), 4) for key, value in medians.items()}
    for model in methods.of(config).models(config):
        if model.timed_as is not None:
            timing[model.name] = timing[model.timed_as]
    files.write_json(layout.stage_folder(workdir, "report") / "timing.json", timing)


def slide_models(config: ConfigDict, workdir: Path) -> dict[str, SlideModel]:
    """By name: what `model/` holds, and what it is compared with, of fold 1; of models of one shape
    one."""
    method, models = methods.of(config), {}
    for model in method.models(config):
        if model == method.main:
            models[model.name] = model_folder.load(workdir / "model")
        elif model.timed_as is None:
            models[model.name] = model.slide_model(config, workdir, 1)
    return models
