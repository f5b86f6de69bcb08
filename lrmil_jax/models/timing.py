"""What a slide costs from its file: the delivered model as it is, beside its teacher at HR."""

from pathlib import Path

import pandas as pd
from ml_collections import ConfigDict

from lrmil_jax import files
from lrmil_jax.data import labels as label_csv
from lrmil_jax.models import loading, model_folder, trained
from lrmil_jax.models.guided import GuidedClassifier
from lrmil_jax.models.inference import SlideClassifier
from lrmil_jax.train.logging import progress
from lrmil_jax.train.mil import BagClassifier
from lrmil_jax.workspace import cohorts, layout, stage_files


def run(config: ConfigDict, workdir: Path) -> None:
    """Writes `report/timing.json`: per model the median seconds of every phase over slides, after
    a warm-up, their sum `total`, and the `patches` that went through an encoder.

    HR is read in parent-sized blocks, and all use the same encoder batch on the same devices.
    """
    if not config.evaluate.timed_slides:
        return
    classifiers = _classifiers(config, workdir)
    table = cohorts.prepared(config, workdir).slides(1, "test")
    rows = list(table.head(config.evaluate.timed_slides).itertuples())
    timing = {}
    with progress("time per slide", len(classifiers) * (len(rows) + 1)) as bar:
        for arm, classify in classifiers.items():
            measured = []
            for number, row in enumerate([rows[0], *rows]):
                result = classify(Path(row.path), label_csv.given_mpp(row))
                if number:  # the first run compiles
                    total = sum(result.seconds.values())
                    counts = {"patches": result.encoded, "total": total}
                    measured.append(result.seconds | counts)
                bar.advance()
            medians = pd.DataFrame(measured).median()
            timing[arm] = {name: round(float(value), 4) for name, value in medians.items()}
    files.write_json(layout.stage_folder(workdir, "report") / "timing.json", timing)


def _classifiers(
    config: ConfigDict, workdir: Path
) -> dict[str, SlideClassifier | GuidedClassifier]:
    """By arm: what `model/` holds, and what it is compared with, of fold 1."""
    settings = cohorts.tiling_settings(config)
    batch, dtype = config.encoder.batch, config.features.dtype
    classifiers = {}
    if config.method in ("lrmil", "mil"):
        member = trained.batch_encoder(config, trained.hr_encoder(config, workdir))
        classifiers["teacher"] = SlideClassifier(
            [(member, trained.teacher(workdir, 1))], settings, dtype, batch, high_resolution=True
        )
    if config.method == "mil_lr":
        encoder = loading.low_resolution(trained.hr_encoder(config, workdir), settings.geometry)
        head = BagClassifier.load(stage_files.baseline_head(workdir, 1))
        member = trained.batch_encoder(config, encoder)
        classifiers["no_distillation"] = SlideClassifier([(member, head)], settings, dtype, batch)
    if model_folder.members(config):
        classifiers[config.method] = model_folder.load(workdir / "model").classifier
    return classifiers
