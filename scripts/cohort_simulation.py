"""A simulated cohort of the size this software is for: slides, patients, folds, bags, a signal.

1,000 slides of 800 patients in 5 folds, a fifth of the patients positive. HR bags are log-normal
with median 9,500 and 95th percentile 30,000, LR bags with median 700 and 95th percentile 2,500:
both are quantiles of the same slide, and the HR patches are children of its LR patches, at most 16
of each. Features are standard normal, drawn when asked for and the same whenever they are; in a
positive slide a share of the LR patches, with all their children, is shifted along one direction.
So the Bayes-optimal AUC is known, and an oracle's is computed on the very features.
"""

import csv
import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats

from lrmil_jax.data.features import FeatureStore
from lrmil_jax.data.folds import make as make_folds
from lrmil_jax.slides import synthetic
from lrmil_jax.tasks.classification import Classification
from lrmil_jax.train import mil

CLASSES = ("benign", "tumour")  # as the shipped descriptions call them
CHILDREN = 16  # HR patches of an LR patch that lies wholly in tissue
MEDIAN, PERCENTILE_95 = {"hr": 9_500, "lr": 700}, {"hr": 30_000, "lr": 2_500}
_POOL_ROWS = 32_768
# Streams of random numbers of one slide, apart from each other.
_STREAMS = {"hr": 0, "lr": 1, "children": 2, "shifted": 3, "teacher": 4}


@dataclasses.dataclass(frozen=True)
class Signal:
    """What tells a positive slide.

    Attributes:
      share: of its LR patches that are shifted, each by chance.
      shift: of their instances and of their children's, in standard deviations.
      silent: share of the positive slides without any shifted patch, which nobody can tell.
    """

    share: float = 0.03
    shift: float = 3.0
    silent: float = 0.1

    @property
    def auc(self) -> float:
        """The best AUC there can be where every slide that is not silent is told for certain."""
        return 1 - self.silent / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cohort:
    """The cohort.

    Attributes:
      table: a row a slide: slide_id, patient_id, label (0 or 1), fold_1 and on.
      lr_sizes: [S] LR patches of every slide.
      coverage: [S] share of an LR patch's children that lie in tissue.
      signal: see Signal.
      seed: of everything drawn.
    """

    table: pd.DataFrame
    lr_sizes: Int[np.ndarray, " S"]
    coverage: Float[np.ndarray, " S"]
    signal: Signal
    seed: int

    @functools.cached_property
    def sizes(self) -> dict[str, Int[np.ndarray, " S"]]:
        """Instances of every slide's bag, at both levels."""
        children = [int(self.children(slide).sum()) for slide in range(len(self.table))]
        return {"lr": self.lr_sizes, "hr": np.array(children)}

    @property
    def labels(self) -> Int[np.ndarray, " S"]:
        return self.table.label.to_numpy(np.int32)

    def rng(self, slide: int, stream: str) -> np.random.Generator:
        """Of one slide and one purpose."""
        return np.random.default_rng([self.seed, slide, _STREAMS[stream]])

    def children(self, slide: int) -> Int[np.ndarray, " N"]:
        """HR patches of each LR patch, 1 to 16."""
        drawn = self.rng(slide, "children").binomial(
            CHILDREN, self.coverage[slide], size=self.lr_sizes[slide]
        )
        return np.maximum(drawn, 1)

    def shifted(self, slide: int) -> Bool[np.ndarray, " N"]:
        """Which LR patches carry the signal."""
        rng = self.rng(slide, "shifted")
        silent = rng.random() < self.signal.silent
        drawn = rng.random(self.lr_sizes[slide]) < self.signal.share
        return drawn & (self.labels[slide] == 1) & (not silent)

    def split(self, fold: int, *splits: str) -> Int[np.ndarray, " n"]:
        """Slides of some splits of a fold."""
        return np.flatnonzero(self.table[f"fold_{fold}"].isin(splits))

    def bags(self, level: str, *, width: int, fold: int = 1, **extras) -> mil.BagData:
        """A fold's training and validation slides, as `mil.train_head` takes them."""
        slides = self.split(fold, "train", "val")
        split = self.table[f"fold_{fold}"].to_numpy()[slides]
        return mil.BagData(
            store=SimulatedStore(self, level, slides, width=width),
            targets=self.labels[slides, None].astype(np.float32),
            task=Classification(CLASSES),
            cases=self.table.patient_id.to_numpy()[slides].tolist(),
            train=np.flatnonzero(split == "train"),
            val=np.flatnonzero(split == "val"),
            **extras,
        )

    def teacher_outputs(
        self, slide: int
    ) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " K"]]:
        """Logits of a good teacher, and its attention logits over the HR patches."""
        shifted = np.repeat(self.shifted(slide), self.children(slide))
        noise = self.rng(slide, "teacher").standard_normal(len(shifted), np.float32)
        logits = np.array([0.0, 3.0 if shifted.any() else -3.0], np.float32)
        return logits, noise + 4.0 * shifted.astype(np.float32)


def make_cohort(
    *,
    slides: int = 1000,
    patients: int = 800,
    folds: int = 5,
    positive: float = 0.2,
    signal: Signal | None = None,
    seed: int = 0,
) -> Cohort:
    """Draws a cohort; `positive` is the share of positive patients."""
    rng = np.random.default_rng(seed)
    second = rng.choice(patients, slides - patients, replace=False)  # patients with two slides
    patient = np.concatenate([np.arange(patients), second])
    is_positive = np.isin(patient, rng.choice(patients, round(patients * positive), replace=False))
    # Quantiles instead of draws: median and tail are those wanted, whatever the seed.
    quantile = rng.permutation(stats.norm.ppf((np.arange(slides) + 0.5) / slides))
    wanted = {
        level: MEDIAN[level]
        * np.exp(quantile * np.log(PERCENTILE_95[level] / MEDIAN[level]) / stats.norm.ppf(0.95))
        for level in MEDIAN
    }
    lr_sizes = np.maximum(1, wanted["lr"].round()).astype(np.int64)
    table = pd.DataFrame(
        {
            "slide_id": [f"slide_{number:04d}" for number in range(slides)],
            "patient_id": [f"patient_{number:04d}" for number in patient],
            "label": is_positive.astype(int),
        }
    )
    return Cohort(
        table=table.assign(
            **make_folds(
                table, table.label.to_numpy(), folds=folds, seed=seed, source="the simulation"
            )
        ),
        lr_sizes=lr_sizes,
        coverage=np.minimum(1.0, wanted["hr"] / (CHILDREN * lr_sizes)),
        signal=signal or Signal(),
        seed=seed,
    )


class SimulatedStore(FeatureStore):
    """Features of some slides, made when asked for, without any file.

    Rows are drawn from a pool of standard normal rows in float16, so that a bag costs about what
    reading it from a warm file cache would.

    Attributes:
      slide_ids: in order.
      sizes: [s] instances per slide.
    """

    def __init__(self, cohort: Cohort, level: str, slides: Int[np.ndarray, " s"], *, width: int):
        self.cohort, self.level, self.slides, self.width = cohort, level, slides, width
        self.slide_ids = cohort.table.slide_id.to_numpy()[slides].tolist()
        self.sizes = cohort.sizes[level][slides]

    def parents(self, slide: int) -> Int[np.ndarray, " n"]:
        """The LR patch of every row."""
        number = int(self.slides[slide])
        repeats = self.cohort.children(number) if self.level == "hr" else 1
        return np.repeat(np.arange(self.cohort.lr_sizes[number]), repeats)

    def embedding(self, slide: int) -> Float[np.ndarray, "n D"]:
        """Features of the slide at this place in the order, float16."""
        number, parents = int(self.slides[slide]), self.parents(slide)
        pool = _pool(self.width)
        places = self.cohort.rng(number, self.level).integers(len(pool), size=len(parents))
        rows = pool[places]
        shifted = self.cohort.shifted(number)
        if shifted.any():
            carries = shifted[parents]
            shift = self.cohort.signal.shift * direction(self.width)
            rows[carries] = (rows[carries].astype(np.float32) + shift).astype(np.float16)
        return rows

    def places(self, slide: int) -> dict[str, np.ndarray]:
        """xy, parent and child of the rows."""
        parents = self.parents(slide)
        first = np.searchsorted(parents, parents)
        child = np.arange(len(parents)) - first if self.level == "hr" else np.full(len(parents), -1)
        xy = np.stack([parents * 1024, child * 256], axis=1)
        return {"xy": xy.astype(np.int32), "parent": parents.astype(np.int32),
                "child": child.astype(np.int32)}  # fmt: skip

    def statistics(
        self, slides: list[int]
    ) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, " D"]]:
        """Mean and SD of the pool: the few shifted rows of some slides are left out."""
        del slides
        rows = _pool(self.width).astype(np.float32)
        return rows.mean(0), np.sqrt(rows.var(0) + 1e-6)

    def oracle(self, slide: int) -> float:
        """Log likelihood ratio of a bag, positive against negative, for one who knows the signal.

        Exact but for the pool: an LR patch is shifted with probability `share`, its instances all
        together. Silent slides change only the scale, not the order.
        """
        signal, share = self.cohort.signal, self.cohort.signal.share
        along = self.embedding(slide).astype(np.float32) @ direction(self.width)
        evidence = np.bincount(self.parents(slide), signal.shift * along - signal.shift**2 / 2)
        return float(np.logaddexp(np.log1p(-share), np.log(share) + evidence).sum())


def direction(width: int) -> Float[np.ndarray, " D"]:
    """Unit vector of the signal."""
    drawn = np.random.default_rng(width).standard_normal(width).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


@functools.lru_cache(maxsize=2)
def _pool(width: int) -> Float[np.ndarray, "rows D"]:
    drawn = np.random.default_rng(0).standard_normal((_POOL_ROWS, width), np.float32)
    return drawn.astype(np.float16)


def write_slides(folder: Path, *, count: int, seed: int = 0, largest: int = 1280) -> Path:
    """Pyramidal TIFFs that all differ in size, cut from a few fields of procedural tissue.

    A fifth of the patients is positive, at least five of them; every fifth patient has two slides.

    Returns:
      The label CSV; the slides lie in `folder/slides`.
    """
    (folder / "slides").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    fields = [
        synthetic.tissue_image(np.random.default_rng([seed, label]), size_px=largest,
                               positive=bool(label))[0]
        for label in (0, 1)
    ]  # fmt: skip
    patients = round(count * 0.8)
    positives = max(5, round(patients * 0.2))
    rows = []
    for number in range(count):
        patient = number % patients
        label = int(patient >= patients - positives)
        height, width = (int(side) for side in rng.integers(480, largest, size=2))
        y, x = rng.integers(largest - height), rng.integers(largest - width)
        name = f"slide_{number:03d}"
        image = fields[label][y : y + height, x : x + width]
        synthetic.write_slide(folder / "slides" / f"{name}.tif", image, mpp=0.5)
        rows.append((name, f"patient_{patient:03d}", CLASSES[label]))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slide_id", "patient_id", "label"), *rows])
    return folder / "labels.csv"
