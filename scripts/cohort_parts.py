"""The parts of the cohort benchmark: each takes the options and gives figures for the table."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cohort_product as product
import numpy as np
import pandas as pd
from bench_selection import random_space
from cohort_simulation import CLASSES, Cohort, Signal, SimulatedStore, make_cohort, write_slides
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from scipy import special, stats
from sklearn.metrics import roc_auc_score

from lrmil_jax import config as configuration
from lrmil_jax.data import features
from lrmil_jax.train import bag_model, mil

_DEVICE_GIB = 4.0  # features of the full width that a device of the simulation holds
_STUDENT_LOSS = ("lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard", "temperature_bag",
                 "temperature_attn", "topk", "hard")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How large everything is that may be smaller than the real thing.

    Attributes:
      width: of features; hidden: of the heads' attention.
      epochs, learning_rate: of teacher and student; noise_epochs: of the heads on noise.
      probe_epochs: over which gradient weights are summed.
      sample: slides on which costly work per slide is measured.
      tiffs: slides of the file part; simulations: of intervals.
      methods: that the file part runs.
      slides, patients: of the cohort; fewer are for tests alone.
    """

    width: int = 768
    hidden: int = 128
    epochs: int = 20
    noise_epochs: int = 5
    learning_rate: float = 5e-4
    probe_epochs: int = 4
    sample: int = 1000
    tiffs: int = 200
    simulations: int = 1000
    methods: tuple[str, ...] = ("lrmil", "wise_fuse")
    slides: int = 1000
    patients: int = 800

    def cohort(self, **changes) -> Cohort:
        """The simulated cohort."""
        return make_cohort(slides=self.slides, patients=self.patients, **changes)


QUICK = Options(
    width=16, hidden=32, epochs=1, noise_epochs=2, learning_rate=3e-3, probe_epochs=1, sample=16,
    tiffs=40, simulations=200, methods=("lrmil",),
)  # fmt: skip


def gradients(options: Options) -> dict:
    """Gradient shares of teacher and student at the real sizes of bags."""
    cohort, result = options.cohort(), {}
    for name, level in (("teacher", "hr"), ("student", "lr")):
        data, block = cohort.bags(level, width=2), configuration.default()[name]
        weights = product.bag_weights(data, block, epochs=options.probe_epochs)
        result[name] = gradient_shares(
            weights[data.train],
            data.targets[:, 0].astype(int)[data.train],
            data.store.sizes[data.train],
        )
        print(f"  {name}: {result[name]}", flush=True)
    return result


def gradient_shares(
    weights: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], sizes: Int[np.ndarray, " n"]
) -> dict:
    """Mean weight of a bag of the rarer class over one of the other, and of long over short bags.

    Returns:
      `class` [measured, wanted]: wanted is what makes both classes weigh the same in all.
      `length`: of the largest tenth of the commoner class over that of its smallest tenth, so
        that class weights have no part in it.
    """
    counts = np.bincount(labels, minlength=2)
    rare = int(counts.argmin())
    measured = weights[labels == rare].mean() / weights[labels != rare].mean()
    common = np.flatnonzero(labels != rare)
    by_size = weights[common[np.argsort(sizes[common], kind="stable")]]
    tenth = max(1, len(by_size) // 10)
    return {
        "class": [float(measured), float(counts.max() / counts.min())],
        "length": float(by_size[-tenth:].mean() / by_size[:tenth].mean()),
    }


def noise(options: Options) -> dict:
    """Mean probability that heads trained on noise give the rare class and the longer bags."""
    silence = Signal(share=0.0)
    rare = options.cohort(signal=silence)
    even = options.cohort(signal=silence, positive=0.5)
    sizes = np.where(even.labels == 1, 13 * even.lr_sizes, even.lr_sizes)
    longer = dataclasses.replace(even, lr_sizes=sizes)
    rows: list[dict] = []
    return {
        "minority": _noise_probability(options, rare, "hr", rows, "noise, a fifth positive"),
        "longer": _noise_probability(options, longer, "lr", rows, "noise, positive bags longer"),
        "rows": rows,
    }


def _noise_probability(
    options: Options, cohort: Cohort, level: str, rows: list[dict], name: str
) -> float:
    # Noise has nothing to be learned but how common a class seems, which needs no width.
    block = product.training_block(
        configuration.default().teacher, epochs=options.noise_epochs, hidden=8, learning_rate=3e-2,
        patience=0,
    )  # fmt: skip
    data = cohort.bags(level, width=8)
    with product.measured(rows, name, len(data.targets[:, 0].astype(int))):
        head, _ = _train(block, data, mil.SlideLoss())
    return float(_probabilities(head, cohort, level, 8)[:, 1].mean())


def _train(
    block: ConfigDict, data: mil.BagData, loss: mil.SlideLoss
) -> tuple[bag_model.BagModel, int]:
    """The trained head, and how often it was validated."""
    with tempfile.TemporaryDirectory() as folder:
        head = mil.train_head(
            name="simulation",
            directory=Path(folder) / "training",
            block=block,
            loss=loss,
            data=data,
            seed=0,
        )
        return head, product.validations(Path(folder) / "training")


def _probabilities(
    head: bag_model.BagModel, cohort: Cohort, level: str, width: int
) -> Float[np.ndarray, "s 2"]:
    """Of the first fold's test slides."""
    store = SimulatedStore(cohort, level, cohort.split(1, "test"), width=width)
    logits = [head.predict(store.embedding(place))[0] for place in range(len(store.slide_ids))]
    return special.softmax(np.stack(logits), axis=1)


def teacher(options: Options) -> dict:
    """A teacher on HR bags and its outputs on all slides that the student learns from."""
    return _learn(options, "teacher", "hr", lambda cohort, rows: {})


def student(options: Options) -> dict:
    """A student on LR bags, taught by the outputs of a good teacher."""

    def teaching(cohort: Cohort, rows: list[dict]) -> dict:
        slides = cohort.split(1, "train", "val")
        guides = {int(slide): _plain_guide(cohort, slide) for slide in slides}
        sampled = spread(slides, cohort.sizes["hr"], options.sample)
        with product.measured(rows, "guidance", len(sampled)):
            for slide in sampled:
                attention = cohort.teacher_outputs(slide)[1]
                parent = np.repeat(np.arange(cohort.lr_sizes[slide]), cohort.children(slide))
                guide, _ = product.guide(attention, parent, int(cohort.lr_sizes[slide]))
                np.testing.assert_allclose(guide, guides[int(slide)], rtol=1e-3, atol=1e-6)
        logits = np.stack([cohort.teacher_outputs(slide)[0] for slide in slides])
        guide = np.concatenate([guides[int(slide)] for slide in slides]).astype(np.float32)
        return {
            "per_bag": {"teacher_logits": logits},
            "per_instance": {"guide": guide, "covered": np.ones(len(guide), bool)},
        }

    return _learn(options, "student", "lr", teaching)


def _plain_guide(cohort: Cohort, slide: int) -> Float[np.ndarray, " N"]:
    """The attention mass of each LR patch, in NumPy."""
    parent = np.repeat(np.arange(cohort.lr_sizes[slide]), cohort.children(slide))
    return np.bincount(parent, special.softmax(cohort.teacher_outputs(slide)[1]))


def spread(
    slides: Int[np.ndarray, " n"], sizes: Int[np.ndarray, " S"], count: int
) -> Int[np.ndarray, " c"]:
    """`count` of the slides, evenly over their sizes."""
    ordered = slides[np.argsort(sizes[slides], kind="stable")]
    return ordered[np.linspace(0, len(ordered) - 1, min(count, len(ordered))).astype(int)]


def _learn(
    options: Options, name: str, level: str, teaching: Callable[[Cohort, list[dict]], dict]
) -> dict:
    cohort, rows, config = options.cohort(), [], configuration.default()
    block = product.training_block(
        config[name], epochs=options.epochs, hidden=options.hidden,
        learning_rate=options.learning_rate,
        # Resident or streamed as the full width would be.
        resident_gib=_DEVICE_GIB * min(1.0, options.width / 768),
        patience=0,
    )  # fmt: skip
    data = cohort.bags(level, width=options.width, **teaching(cohort, rows))
    loss = mil.SlideLoss(
        **({key: config.student[key] for key in _STUDENT_LOSS} if name == "student" else {})
    )
    training = product.measured(rows, f"{name} training", len(data.targets[:, 0].astype(int)))
    with training as row, product.waiting() as account:
        head, validations = _train(block, data, loss)
    row["waits"] = account.seconds / row["wall_s"]
    if name == "teacher":
        with product.measured(rows, "teacher outputs", len(data.targets[:, 0].astype(int))):
            for place in range(len(data.targets[:, 0].astype(int))):
                head.predict(data.store.embedding(place))
    test = cohort.split(1, "test")
    with product.measured(rows, f"{name} evaluation", len(test)):
        probabilities = _probabilities(head, cohort, level, options.width)
        table = product.frame(cohort.table.iloc[test], probabilities, CLASSES)
        auc, interval = product.auc_and_interval(table)
    store = SimulatedStore(cohort, level, test, width=options.width)
    oracle = [store.oracle(place) for place in range(len(test))]
    return {
        "rows": rows,
        "auc": auc,
        "auc_interval": interval,
        "oracle_auc": float(roc_auc_score(cohort.labels[test], oracle)),
        "expected_oracle_auc": cohort.signal.auc,
        "validations_per_epoch": validations / options.epochs,
    }


def guided(options: Options) -> dict:
    """WISE-FUSE's choice, its fused features, and what writing features costs."""
    cohort, config, rows = options.cohort(), configuration.default(), []
    config.select.score = "patch"  # the simulated features have no windows
    every = np.arange(len(cohort.table))
    sampled = spread(every, cohort.sizes["hr"], options.sample)
    stores = {
        level: SimulatedStore(cohort, level, sampled, width=options.width) for level in ("lr", "hr")
    }
    chosen, fused = {}, {}
    with tempfile.TemporaryDirectory() as name:
        space = random_space(Path(name), options.width)
        with product.measured(rows, "select", len(sampled)):
            for place, slide_id in enumerate(stores["lr"].slide_ids):
                rows_lr = stores["lr"].embedding(place)
                mask = np.ones((len(rows_lr), 4, 4), bool)
                chosen[place] = product.choose(config, space, rows_lr, mask, slide_id)[1]
        with product.measured(rows, "fuse", len(sampled)):
            for place, patches in chosen.items():
                kept = np.isin(stores["hr"].parents(place), patches)
                embedding = stores["hr"].embedding(place)[kept]
                fused[place] = product.fused_features(config, space, embedding).shape
        with product.measured(rows, "write HR features", len(sampled)):
            for place, slide_id in enumerate(stores["hr"].slide_ids):
                _write_features(Path(name), stores["hr"], place, slide_id, config)
    return {"rows": rows, "chosen": [len(patches) for patches in chosen.values()]}


def _write_features(
    folder: Path, store: SimulatedStore, place: int, slide_id: str, config: ConfigDict
) -> None:
    slide = features.SlideFeatures(
        embedding=store.embedding(place),
        child_mask=np.ones((int(store.sizes[place]), 4, 4), bool),
        **store.places(place),
    )
    path = folder / f"{slide_id}.array_record"
    block = config.features.rows
    features.write(path, slide_id, slide, dtype=config.features.dtype, block=block)
    path.unlink()


# Five models' scores of a patient: a part that all models share, a part of each model's own, and a
# step for the positive ones that differs a little from model to model.
_STEP, _STEP_SD, _SHARED = 1.5, 0.1, 0.7
_MODELS, _ONE_TEST, _EACH_TEST = 5, 100, 40
TRUE_AUC = float(stats.norm.cdf(_STEP / np.sqrt(2 + _STEP_SD**2)))


def intervals(options: Options) -> dict:
    """How often the product's 95 % intervals hold the AUC that the models have in truth."""
    situations = {"five models, one test set": True, "five models, a test set each": False}
    result = {}
    for name, one_test in situations.items():
        bounds = np.array(
            [
                product.mean_interval(models_scores(number, one_test))
                for number in range(options.simulations)
            ]
        )
        held = (bounds[:, 0] <= TRUE_AUC) & (bounds[:, 1] >= TRUE_AUC)
        result[name] = {
            "coverage": float(held.mean()),
            "mean_width": float((bounds[:, 1] - bounds[:, 0]).mean()),
        }
        print(f"  {name}: {result[name]}", flush=True)
    return {"true_auc": TRUE_AUC, "simulations": options.simulations, "situations": result}


def models_scores(number: int, one_test: bool) -> list[pd.DataFrame]:
    """Predictions of five models on one test set or on one each, as `evaluate` writes them."""
    rng = np.random.default_rng(number)
    tests = [_patients(rng, _ONE_TEST, "p")] * _MODELS
    if not one_test:
        tests = [_patients(rng, _EACH_TEST, f"m{model}p") for model in range(_MODELS)]
    frames = []
    for slides, shared in tests:
        step = rng.normal(_STEP, _STEP_SD)
        own = rng.normal(size=len(slides))
        scores = step * slides.label + np.sqrt(_SHARED) * shared + np.sqrt(1 - _SHARED) * own
        positive = special.expit(scores.to_numpy() - _STEP / 2)
        probabilities = np.stack([1 - positive, positive], axis=1)
        frames.append(product.frame(slides, probabilities, CLASSES))
    return frames


def _patients(
    rng: np.random.Generator, count: int, prefix: str
) -> tuple[pd.DataFrame, Float[np.ndarray, " P"]]:
    """A slide of each patient, three in ten positive, and what all models see in them."""
    names = [f"{prefix}{number}" for number in range(count)]
    label = (np.arange(count) < round(0.3 * count)).astype(int)
    slides = pd.DataFrame({"slide_id": names, "patient_id": names, "label": label})
    return slides, rng.normal(size=count)


def files(options: Options) -> dict:
    """Every method on TIFF slides of many sizes, five folds, and a prediction of all slides."""
    rows: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="bench_cohort_") as name:
        folder = Path(name)
        with product.measured(rows, "writing slides", options.tiffs):
            labels = write_slides(folder / "cohort", count=options.tiffs)
        predicted, encoded = {}, {}
        for config in _configs(labels, options.methods):
            workdir = folder / config.method
            encoded[config.method] = product.run_stages(
                config, workdir, rows, config.method, options.tiffs
            )
            with product.measured(rows, f"{config.method} predict", options.tiffs):
                predicted[config.method] = product.run_predict(workdir, labels.parent / "slides")
    encodings = {name: run["encoded"] / run["lr_patches"] for name, run in predicted.items()}
    return {
        "rows": rows,
        "predicted": predicted,
        "encodings_per_lr_patch": encodings,
        "hr_encoded_of_all": encoded,
    }


def _configs(labels: Path, methods: tuple[str, ...]) -> Iterator[ConfigDict]:
    """Methods with a small tower that comes with the package, few steps, five folds."""
    for method in methods:
        config = configuration.default()
        config.method = method
        config.data.update(labels=str(labels), slides=str(labels.parent / "slides"))
        config.geometry.update(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
        config = configuration.tiny(config)
        config.folds = 5
        config.encoder.update(name="vit-tiny", weights="shipped:procedural", batch=64)
        for block in (config.teacher, config.student, config.mil):
            # What counts here is the way of the files: one update, or few, of whole batches.
            block.update(epochs=1, budget=16_384)
        config.distill.update(steps=2, eval_every=2)
        config.student.no_distillation = False
        config.text.descriptions = "shipped:procedural"
        config.evaluate.timed_slides = 0
        config.report.heatmaps = 0
        if method == "wise_fuse":
            config.prepare.hr = "skip"
        yield config


PARTS = {part.__name__: part
         for part in (gradients, noise, teacher, student, guided, intervals, files)}  # fmt: skip
