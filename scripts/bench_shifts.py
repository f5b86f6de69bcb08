"""What is left of a run's models on its test slides as another laboratory would give them.

  python scripts/bench_shifts.py RUN [RUN ...]        # work folders of finished runs of one fold
  python scripts/bench_shifts.py runs/miniature/runs/seed_*/base --strengths 2

Every test slide is written anew with its stains, focus, compression or colours shifted
(`lrmil_jax/slides/shifts.py`, seeded by the slide), and every model of the run predicts it from the
file: prints the AUC of each model and shift, its mean over runs, and what was lost. Slides are held
in memory whole, so this is for composed and procedural ones.
"""

import argparse
import functools
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from sklearn.metrics import roc_auc_score

from lrmil_jax import config as configuration
from lrmil_jax.errors import DataError, UserError
from lrmil_jax.methods import timing
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.processes import map_jobs
from lrmil_jax.progress import progress, setup_logging
from lrmil_jax.slides import shifts, synthetic
from lrmil_jax.slides.slide import open_slide
from lrmil_jax.workspace import cohorts

AS_IT_IS, _LARGEST_SIDE = "none", 16_384


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument(
        "--shifts", nargs="+", choices=tuple(shifts.SHIFTS), default=[*shifts.SHIFTS]
    )
    parser.add_argument(
        "--strengths", type=int, nargs="+", choices=shifts.STRENGTHS, default=[1, 3]
    )
    parser.add_argument("--csv", type=Path, help="write every run's figures here too")
    args = parser.parse_args()
    setup_logging()
    try:
        measured = pd.concat([of_run(run, args.shifts, args.strengths) for run in args.runs])
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    if args.csv is not None:
        measured.to_csv(args.csv, index=False)
    print(table(measured))
    return 0


def of_run(run: Path, names: list[str], strengths: list[int]) -> pd.DataFrame:
    """AUC of every model of a run under every shift.

    Raises:
      DataError: the folder is no finished run of two classes.
    """
    config = config_of(run)
    test, rows = cohorts.prepared(config, run).slides(1, "test"), []
    if config.task != "classification" or test.label.nunique() != 2:
        raise DataError(f"{run} is no run of two classes, or its test split has but one of them")
    models = timing.slide_models(config, run)
    settings = [(AS_IT_IS, 0), *((name, strength) for name in names for strength in strengths)]
    with progress(f"shifts of {run}", len(settings) * len(models)) as bar:
        for name, strength in settings:
            with tempfile.TemporaryDirectory() as folder:
                paths = written(test, Path(folder), name, strength)
                for model in models:
                    auc = roc_auc_score(test.label, scores(models[model], paths))
                    rows.append((str(run), model, name, strength, auc))
                    bar.advance()
    return pd.DataFrame(rows, columns=["run", "model", "shift", "strength", "auc"])


def config_of(run: Path) -> ConfigDict:
    """The config with which a run was last called.

    Raises:
      DataError: there is none.
    """
    path = run / "config.json"
    if not path.is_file():
        raise DataError(f"{run} has no config.json; give the work folder of a finished run")
    flat = json.loads(path.read_text())
    config = configuration.default()
    config.update_from_flattened_dict(
        {key: tuple(value) if isinstance(value, list) else value for key, value in flat.items()}
    )
    return config


def written(test: pd.DataFrame, folder: Path, name: str, strength: int) -> list[Path]:
    """The slides as files, shifted; those that are not shifted as they are."""
    if name == AS_IT_IS:
        return [Path(path) for path in test.path]
    jobs = [(Path(row.path), folder / f"{row.slide_id}.tif") for row in test.itertuples()]
    shift = functools.partial(write_shifted, name=name, strength=strength)
    return map_jobs(shift, jobs, workers=0, label=f"{name} {strength}")


def write_shifted(job: tuple[Path, Path], *, name: str, strength: int) -> Path:
    """Writes one slide, shifted by a draw of its own.

    Raises:
      DataError: it is too large to be held whole.
    """
    path, target = job
    with open_slide(path) as slide:
        if max(slide.dimensions) > _LARGEST_SIDE:
            raise DataError(f"{path} is larger than {_LARGEST_SIDE} px; this is for small slides")
        width, height = slide.dimensions
        side = max(width, height)
        image = slide.read((0, 0), side, side)[:height, :width]
        seed = zlib.crc32(path.stem.encode())
        shifted = shifts.shifted(image, name, strength=strength, seed=seed)
        synthetic.write_slide(target, np.ascontiguousarray(shifted), mpp=slide.mpp, quality=95)
    return target


def scores(model: SlideModel, paths: list[Path]) -> list[float]:
    """Probability of the second class of every slide.

    Raises:
      UserError: a slide that cannot be predicted.
    """
    found = []
    for result in model.predict_many(paths):
        if isinstance(result, UserError):
            raise result
        found.append(result.probabilities[model.classes[1]])
    return found


def table(measured: pd.DataFrame) -> str:
    """Mean AUC over runs of every model and shift, and how far it is below the slides as they are,
    with the SD of that over runs."""
    key = ["run", "model"]
    plain = measured[measured["shift"] == AS_IT_IS].set_index(key).auc
    lost = plain.loc[list(zip(measured.run, measured.model, strict=True))].to_numpy() - measured.auc
    grouped = measured.assign(lost=lost).groupby(["shift", "strength", "model"], sort=False)
    lines = ["| shift | strength | model | AUC | lost (SD over runs) |", "|---|---|---|---|---|"]
    for (shift, strength, model), rows in grouped:
        spread = f" ({rows.lost.std():.3f})" if len(rows) > 1 else ""
        lines.append(
            f"| {shift} | {strength} | {model} | {rows.auc.mean():.3f} | "
            f"{rows.lost.mean():+.3f}{spread} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
