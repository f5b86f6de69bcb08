"""MIL on bags of patch features: teacher, student and baselines are this one function.

What differs between them is which of the slide-level loss terms have a weight above 0.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from lrmil_jax import heads
from lrmil_jax.data.batching import BagBatches, balanced_probabilities
from lrmil_jax.data.features import FeatureStore
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.evals import metrics
from lrmil_jax.train import sharding
from lrmil_jax.train.checkpoint import load_params, save_params
from lrmil_jax.train.loop import fit
from lrmil_jax.train.state import TrainSettings
from lrmil_jax.types import AnyArray

# Lengths that bags are filled up to when predicting: few, so that a cohort compiles few times.
_PREDICT_LENGTHS = tuple(256 * 2**power for power in range(14))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideLoss:
    """Weights and options of L_stage2 (`method.md` part 2); a teacher has cross-entropy alone."""

    lambda_ce: float = 1.0
    lambda_bag: float = 0.0
    lambda_soft: float = 0.0
    lambda_hard: float = 0.0
    temperature_bag: float = 1.0
    temperature_attn: float = 1.0
    topk: int = 8
    hard: str = "rank"

    def terms(self, output: heads.HeadOutput, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Every term with a weight above 0, unweighted, and their weighted sum `loss`, each [B].

        The batch holds `label` [B]; with teacher terms also `teacher_logits` [B, C], and `guide`
        and `covered` [B, N]: patches without any HR patch have no guide and are left out.
        """
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        terms = {}
        if self.lambda_ce:
            terms["ce"] = cross_entropy(output.logits, batch["label"])
        if self.lambda_bag:
            terms["bag"] = slide_losses.bag_loss(
                output.logits, batch["teacher_logits"], temperature=self.temperature_bag
            )
        if self.lambda_soft or self.lambda_hard:
            guided = (batch["guide"], batch["mask"] & batch["covered"])
        if self.lambda_soft:
            terms["soft"] = slide_losses.attention_kl_loss(
                output.attention_logits, *guided, temperature=self.temperature_attn
            )
        if self.lambda_hard and self.hard == "rank":
            terms["hard"] = slide_losses.attention_rank_loss(
                output.attention_logits, *guided, k=self.topk
            )
        elif self.lambda_hard:
            terms["hard"] = slide_losses.instance_loss(output.instance_logits, *guided, k=self.topk)
        total = sum(getattr(self, f"lambda_{name}") * value for name, value in terms.items())
        return {"loss": total, **terms}


@dataclasses.dataclass(frozen=True)
class BagClassifier:
    """A trained head with all that a prediction needs: options, classes, standardisation."""

    name: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    params: Any
    mean: Float[np.ndarray, " D"]
    sd: Float[np.ndarray, " D"]

    @functools.cached_property
    def _module(self):
        return heads.create(self.name, num_classes=len(self.classes), **self.options)

    @functools.cached_property
    def _apply(self):
        def apply(variables, features, mask):
            bags = standardise(features, variables["mean"], variables["sd"])
            output = self._module.apply({"params": variables["params"]}, bags, mask)
            return output.logits, output.attention_logits

        return jax.jit(apply)

    def predict(
        self, features: Float[np.ndarray, "n D"]
    ) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " n"]]:
        """Class logits and attention logits of one bag; zeros for a head without attention."""
        count = len(features)
        length = next((size for size in _PREDICT_LENGTHS if size >= count), count)
        padded = np.zeros((1, length, features.shape[1]), features.dtype)
        padded[0, :count] = features
        variables = {"params": self.params, "mean": self.mean, "sd": self.sd}
        logits, attention = self._apply(variables, padded, np.arange(length)[None] < count)
        attention = np.zeros(count) if attention is None else np.asarray(attention)[0, :count]
        return np.asarray(logits)[0], attention.astype(np.float32)

    def save(self, path: Path, **facts: Any) -> None:
        """Writes the classifier as one safetensors file; `facts` join its metadata."""
        metadata = {"head": self.name, "options": self.options, "classes": list(self.classes)}
        tree = {"head": self.params, "standardise": {"mean": self.mean, "sd": self.sd}}
        save_params(path, tree, metadata | facts)

    @classmethod
    def load(cls, path: Path) -> "BagClassifier":
        """Reads what `save` wrote.

        Raises:
          WeightsError: the file is missing or broken.
        """
        tree, metadata = load_params(path)
        return cls(
            name=metadata["head"],
            options=metadata["options"],
            classes=tuple(metadata["classes"]),
            params=tree["head"],
            mean=tree["standardise"]["mean"],
            sd=tree["standardise"]["sd"],
        )


def standardise(
    features: Float[AnyArray, "B N D"], mean: Float[AnyArray, " D"], sd: Float[AnyArray, " D"]
) -> Float[Array, "B N D"]:
    """Stored features on the scale of the training patients', in float32."""
    return (jnp.asarray(features, jnp.float32) - mean[None, None]) / sd[None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagData:
    """The bags of one fold that training may see, and what is known of each slide.

    Attributes:
      store: features of training and validation slides.
      labels: [S] class of each.
      cases: [S] what counts as one in validation: the patient.
      train, val: places in the store.
      per_bag, per_instance: teacher outputs [S, ...] and guides [rows, ...], for the student.
    """

    store: FeatureStore
    labels: Int[np.ndarray, " S"]
    cases: Sequence[str]
    train: Int[np.ndarray, " t"]
    val: Int[np.ndarray, " v"]
    per_bag: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    per_instance: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def train_settings(
    block: Mapping[str, Any] | ConfigDict, *, steps: int, select: tuple
) -> TrainSettings:
    """The trainer's settings from a config block (`config.training`); 0 switches things off."""
    return TrainSettings(
        steps=steps,
        learning_rate=block["learning_rate"],
        warmup_steps=min(block["warmup_steps"], steps),
        schedule=block["schedule"],
        weight_decay=block["weight_decay"],
        clip_norm=block["clip_norm"] or None,
        accumulate=block["accumulate"],
        eval_every=block["eval_every"],
        log_every=block["log_every"],
        patience=block["patience"] or None,
        select=select,
        fsdp=block["fsdp"],
        optimizer=block["optimizer"],
    )


def train_head(
    *,
    name: str,
    directory: Path,
    block: Mapping[str, Any] | ConfigDict,
    loss: SlideLoss,
    data: BagData,
    classes: tuple[str, ...],
    seed: int,
) -> BagClassifier:
    """Trains one MIL head on the training slides and picks the checkpoint on the validation ones.

    Args:
      name: for progress and messages.
      directory: of this training alone; a call after a kill goes on there.
      block: config block with head, options and optimisation (`config.bag_training`).
      loss: which terms and their weights.
      data: bags, labels, splits and teacher outputs.
      classes: names, in the order of the labels.
      seed: of initialisation, order of bags and dropout.
    """
    options = _head_options(block, loss)
    module = heads.create(block["head"], num_classes=len(classes), **options)
    mean, sd = data.store.statistics(data.train.tolist())
    resident = _resident(data.store, mean.size, block["resident_gib"])
    mesh = sharding.make_mesh()
    # Placed once, and shared by training and validation: the bank may fill half the memory.
    bank = {"bank": _bank(data.store)} if resident else {}
    constants = sharding.replicate({"mean": mean, "sd": sd, **bank}, mesh)
    del bank
    make = functools.partial(_batches, data=data, block=block, resident=resident)
    batches = make(bags=data.train, seed=seed)
    steps = block["epochs"] * max(1, len(batches.plan(0)) // block["accumulate"])
    batches = make(bags=data.train, seed=seed, num_batches=steps * block["accumulate"])
    dummy = (jnp.zeros((1, 8, mean.size)), jnp.ones((1, 8), bool))
    params = module.init(jax.random.key(seed), *dummy)["params"]
    select = ("auc_then_loss", "max") if block["select"] == "auc" else ("loss", "min")
    result = fit(
        name=name,
        directory=directory,
        params=params,
        loss_fn=_loss_fn(module, loss),
        batches=batches.dataset(),
        validate=_Validation(module, constants, make(bags=data.val, seed=0), data, mesh),
        settings=train_settings(block, steps=steps, select=select),
        constants=constants,
        mesh=mesh,
        seed=seed,
    )
    return BagClassifier(block["head"], options, classes, result.params, mean, sd)


def _head_options(block: Mapping[str, Any] | ConfigDict, loss: SlideLoss) -> dict[str, Any]:
    options = {"dropout": block["dropout"], "dtype": block["dtype"]}
    if block["head"] != "mean":
        options["hidden"] = block["hidden"]
        if loss.lambda_hard and loss.hard == "instance":
            options["instance_classes"] = 2
    return options


def _resident(store: FeatureStore, width: int, limit_gib: float) -> bool:
    return int(store.sizes.sum()) * width * 2 <= limit_gib * 2**30


def _bank(store: FeatureStore) -> np.ndarray:
    return np.concatenate([store.embedding(slide) for slide in range(len(store.slide_ids))])


def _batches(
    *,
    data: BagData,
    block: Mapping[str, Any] | ConfigDict,
    resident: bool,
    bags: np.ndarray,
    **options: Any,
) -> BagBatches:
    labels = data.labels[bags]
    training = bags is data.train
    weight = np.ones(len(data.labels))
    if training and block["balance"] == "weights":
        counts = np.bincount(labels, minlength=int(data.labels.max()) + 1)
        weight = (len(labels) / np.maximum(counts, 1) / np.count_nonzero(counts))[data.labels]
    sampling = training and block["balance"] == "sampling"
    return BagBatches(
        data.store.sizes,
        bags=bags,
        budget=block["budget"],
        draw=balanced_probabilities(labels) if sampling else None,
        weight=weight,
        per_bag={"label": data.labels, **data.per_bag},
        per_instance=data.per_instance,
        read=None if resident else data.store.embedding,
        **options,
    )


def _bags(constants: Mapping[str, Array], batch: Mapping[str, Array]) -> Float[Array, "B N D"]:
    features = batch["features"] if "features" in batch else constants["bank"][batch["rows"]]
    return standardise(features, constants["mean"], constants["sd"])


def _loss_fn(module, loss: SlideLoss) -> Callable:
    def loss_fn(params, constants, batch, key, train):
        bags = _bags(constants, batch)
        output = module.apply(
            {"params": params}, bags, batch["mask"], train=train, rngs={"dropout": key}
        )
        return loss.terms(output, batch)

    return loss_fn


class _Validation:
    """Cross-entropy and AUC per patient on the validation slides; all that chooses a checkpoint."""

    def __init__(self, module, constants, batches: BagBatches, data: BagData, mesh):
        self._batches, self._data, self._mesh = batches, data, mesh
        self._constants = constants

        def logits(params, constants, batch):
            bags = _bags(constants, batch)
            return module.apply({"params": params}, bags, batch["mask"]).logits

        self._logits = jax.jit(logits, out_shardings=sharding.replicated(mesh))

    def __call__(self, params: Any) -> dict[str, float | None]:
        probabilities: dict[int, np.ndarray] = {}
        for index in range(len(self._batches)):
            batch = self._batches[index]
            placed = sharding.place_batch(batch, self._mesh)
            logits = np.asarray(self._logits(params, self._constants, placed))
            for slide, row in zip(batch["bag"], jax.nn.softmax(logits, -1), strict=False):
                if slide >= 0:
                    probabilities[int(slide)] = np.asarray(row)
        slides = sorted(probabilities)
        patients = metrics.by_patient(
            metrics.slide_frame(
                [self._data.cases[slide] for slide in slides],
                self._data.labels[slides],
                np.stack([probabilities[slide] for slide in slides]),
            )
        )
        measured = metrics.compute(*metrics.arrays(patients))
        kept = {name: measured[name] for name in ("loss", "auc", "accuracy")}
        # AUC has few values on few patients: of equals the one with the lower loss is the better.
        auc, loss = measured["auc"], measured["loss"]
        return kept | {"auc_then_loss": None if auc is None else auc - 1e-4 * min(loss, 10.0)}
