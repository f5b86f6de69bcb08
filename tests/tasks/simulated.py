"""Rows of `predictions.csv` of patients who are simulated, for every task."""

import numpy as np
import pandas as pd

from lrmil_jax import tasks
from lrmil_jax.tasks import prediction_files, predictions

DATA = {"label_column": "label", "classes": (), "time_column": "time", "event_column": "event",
        "bins": 3}  # fmt: skip


def csv(name: str, signal: np.ndarray, rng) -> pd.DataFrame:
    """Columns of a label CSV that hang on a patient's signal."""
    noise = lambda: rng.normal(size=len(signal))  # noqa: E731
    if name == "survival":
        time, end = (rng.exponential(size=len(signal)) for _ in "ab")
        time = time * np.exp(-signal)
        return pd.DataFrame({"time": np.minimum(time, end) + 1e-3, "event": (time < end) * 1})
    if name == "regression":
        return pd.DataFrame({"label": 3 * signal + noise() + 7})
    if name == "multi_label":
        return pd.DataFrame({"x": (signal + noise() > 0) * 1, "y": (noise() - signal > 0.5) * 1})
    grade = np.digitize(signal + 0.7 * noise(), [-0.4, 0.6])
    if name == "binary":
        return pd.DataFrame({"label": np.array(["benign", "null"])[(grade > 0) * 1]})
    return pd.DataFrame({"label": np.array(["a", "b", "c"])[grade]})


def logits(task: tasks.Task, signal: np.ndarray, rng, noise: float) -> np.ndarray:
    seen = signal[:, None] + noise * rng.normal(size=(len(signal), task.width))
    scale = {"classification": np.arange(task.width) - (task.width - 1) / 2,
             "multi_label": np.resize([1.0, -1.0], task.width)}  # fmt: skip
    return (1.5 * seen * scale.get(task.name, 1.0)).astype(np.float32)


def rows(
    name: str,
    *,
    patients=60,
    seed=0,
    fold=1,
    split="test",
    slides=1.3,
    noise=0.8,
    models=("lrmil",),
) -> pd.DataFrame:
    """One fold's rows as `evaluate` writes them, of patients with one slide or more, a site that
    all slides of a patient share and a scanner that they may not share."""
    rng = np.random.default_rng((seed, fold, split == "val"))
    signal = rng.normal(size=patients)
    kind = "classification" if name == "binary" else name
    given = {"multi_label": {"label_column": "x,y"}, "binary": {"classes": ("benign", "null")}}
    data = DATA | given.get(name, {})
    # Fitted on other patients, as tasks are.
    reference = csv(name, rng.normal(size=80), rng).astype(str)
    task, targets = tasks.kind(kind).read(reference, data, "labels.csv")
    task = task.fitted(task.targets(targets))
    _, table = tasks.kind(kind).read(csv(name, signal, rng).astype(str), data, "labels.csv")
    times = np.maximum(rng.poisson(slides, patients), 1)
    table = table.loc[np.repeat(np.arange(patients), times)].reset_index(drop=True)
    who = np.repeat([f"{split}{fold}-{number:03d}" for number in range(patients)], times)
    table = table.assign(
        slide_id=[f"{one}-{place}" for place, one in enumerate(who)], patient_id=who, case_id=who,
        subgroup_site=np.where(np.repeat(rng.random(patients), times) < 0.6, "north", "south"),
        subgroup_scanner=rng.choice(["A", "B", ""], len(who), p=[0.6, 0.35, 0.05]),
    )  # fmt: skip
    frames = []
    for place, model in enumerate(models):
        seen = logits(task, np.repeat(signal, times), rng, noise * (1 + place))
        frame = predictions.rows(task, model, table, task.link(seen))
        frame["title"] = model.upper() if model == "lrmil" else "HR teacher"
        frames.append(frame.assign(patches=rng.integers(100, 900, len(frame))))
    frame = pd.concat(frames, ignore_index=True)
    return prediction_files.described(frame, task=kind, fold=fold, split=split)
