"""What one run of a study measured: a tidy row a model, and what paired differences need."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from lrmil_jax.evals import bootstrap, metrics, seeds
from lrmil_jax.report import table
from lrmil_jax.stages import evaluate, layout, report
from lrmil_jax.studies.plan import BASE, Run

# The arm that stands for a run in the table: what its method is about.
ARM = {"lrmil": "lrmil", "mil": "teacher", "mil_lr": "no_distillation", "wise_fuse": "wise_fuse"}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One model of one seed.

    Attributes:
      model: its name in the table.
      record: the tidy row.
      auc: of the test patients, or None.
      resampled: AUC of resampled test patients; equal seeds draw equal patients.
      patients: their identities, by which paired differences are checked.
    """

    model: str
    record: dict
    auc: float | None
    resampled: np.ndarray
    patients: tuple[str, ...]


def measure(run: Run) -> list[Measured]:
    """The models of one run: all arms of the config itself, and of a variant its own one."""
    predictions = report.pooled_predictions(run.config, run.folder)
    found = []
    for row in report.result_rows(run.config, run.folder):
        if run.variant == BASE:
            model = table.ARM_NAMES.get(row["arm"], row["arm"])
        elif row["arm"] == ARM[run.config.method]:
            model = run.variant
        else:
            continue
        patients = evaluate.patients(predictions[predictions.arm == row["arm"]])
        samples = run.config.evaluate.bootstrap_samples
        draws = bootstrap.resampled(*metrics.arrays(patients), seed=run.seed, samples=samples)
        found.append(
            Measured(
                model=model,
                record=_record(run, model, row),
                auc=row["auc"],
                resampled=draws["auc"],
                patients=tuple(patients.patient_id),
            )
        )
    return found


def _record(run: Run, model: str, row: dict) -> dict:
    low, high = row.get("auc_interval") or (None, None)
    return {
        "seed": run.seed,
        "variant": run.variant,
        "model": model,
        "changes": " ".join(f"{key}={value}" for key, value in run.changes.items()),
        "budget": _budget(run),
        **{key: value for key, value in row.items() if not key.endswith("_interval")},
        "auc_low": low,
        "auc_high": high,
        "val_auc": _validation_auc(run, row["arm"]),
    }


def _budget(run: Run) -> float | int | None:
    """WISE-FUSE's share of LR patches, or their number, whose children are encoded."""
    chosen = run.config.select
    return (chosen.count or chosen.rho) if run.config.method == "wise_fuse" else None


def _validation_auc(run: Run, arm: str) -> float | None:
    """Mean over folds of the AUC on validation patients, by which settings are chosen."""
    values = []
    for fold in range(1, run.config.folds + 1):
        path = layout.stage_folder(run.folder, "evaluate", fold) / "metrics.json"
        known = json.loads(path.read_text(encoding="utf-8"))[arm].get("validation")
        values.append(None if known is None else known["metrics"]["auc"])
    return None if None in values else float(np.mean(values))


def paired(reference: Sequence[Measured], other: Sequence[Measured]) -> seeds.Summary | None:
    """The reference's AUC less the other model's: same seeds, same resampled patients.

    Returns:
      None where a seed of the other has no reference, or other patients.
    """
    known = {one.record["seed"]: one for one in reference}
    differences, resampled = [], []
    for one in other:
        base = known.get(one.record["seed"])
        if base is None or base.patients != one.patients:
            return None
        undefined = base.auc is None or one.auc is None
        differences.append(None if undefined else base.auc - one.auc)
        resampled.append(base.resampled - one.resampled)
    return seeds.summarise(differences, resampled, seed=0)
