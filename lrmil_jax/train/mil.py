"""MIL on bags of patch features: teacher, student and baselines are this one function.

What differs between them is which of the slide-level loss terms have a weight above 0.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from lrmil_jax import heads
from lrmil_jax.data import param_files
from lrmil_jax.data.batching import BagBatches
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.evals import metrics
from lrmil_jax.train import bags, sharding
from lrmil_jax.train.bags import BagData, standardise
from lrmil_jax.train.loop import fit
from lrmil_jax.train.state import TrainSettings

# Lengths that bags are filled up to when predicting: few, so that a cohort compiles few times.
_PREDICT_LENGTHS = tuple(256 * 2**power for power in range(14))

# Validation batches that the host may run ahead of the device.
_IN_FLIGHT = 3


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
            instances = standardise(features, variables["mean"], variables["sd"])
            output = self._module.apply({"params": variables["params"]}, instances, mask)
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
        param_files.save_params(path, tree, metadata | facts)

    @classmethod
    def load(cls, path: Path) -> "BagClassifier":
        """Reads what `save` wrote.

        Raises:
          WeightsError: the file is missing or broken.
        """
        tree, metadata = param_files.load_params(path)
        return cls(
            name=metadata["head"],
            options=metadata["options"],
            classes=tuple(metadata["classes"]),
            params=tree["head"],
            mean=tree["standardise"]["mean"],
            sd=tree["standardise"]["sd"],
        )


def train_settings(
    block: Mapping[str, Any] | ConfigDict,
    *,
    steps: int,
    select: tuple[tuple[str, str], ...] = (("loss", "min"),),
    epoch: int = 1,
    **options: Any,
) -> TrainSettings:
    """The trainer's settings from a config block (`config.training`); 0 switches things off.

    Args:
      block: its rhythm is in steps, or in epochs where it has `epochs`.
      steps: updates in all.
      select: see `TrainSettings`.
      epoch: steps of an epoch, for such a block.
      options: further settings.
    """
    # Patience is in the block's own unit; the trainer counts evaluations.
    patience = (
        -(-block["patience"] // block["eval_every"]) if "epochs" in block else block["patience"]
    )
    return TrainSettings(
        steps=steps,
        learning_rate=block["learning_rate"],
        warmup_steps=min(block["warmup_steps"], steps),
        schedule=block["schedule"],
        weight_decay=block["weight_decay"],
        clip_norm=block["clip_norm"] or None,
        eval_every=block["eval_every"] * epoch,
        log_every=block["log_every"] * epoch,
        patience=patience or None,
        select=select,
        fsdp=block["fsdp"],
        optimizer=block["optimizer"],
        **options,
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

    Raises:
      TrainingError: a bag is too long for the device, or training diverged.
    """
    options = _head_options(block, loss)
    module = heads.create(block["head"], num_classes=len(classes), **options)
    mesh = sharding.make_mesh()
    loader = bags.BagLoader(data, block, mesh, name)
    batches = loader.training(seed=seed)
    dummy = (jnp.zeros((1, 8, loader.mean.size)), jnp.ones((1, 8), bool))
    params = module.init(jax.random.key(seed), *dummy)["params"]
    # Where classes are balanced in training, they are in what chooses a checkpoint too.
    by_loss = (("loss" if block["balance"] == "none" else "balanced_loss", "min"),)
    result = fit(
        name=name,
        directory=directory,
        params=params,
        loss_fn=_loss_fn(module, loss),
        batches=batches.dataset(),
        validate=_Validation(module, loader.constants, loader.validation(), data, mesh),
        settings=train_settings(
            block,
            steps=block["epochs"] * batches.updates,
            select=(("auc", "max"), *by_loss) if block["select"] == "auc" else by_loss,
            epoch=batches.updates,
            examples=batches.bags_of_an_update,
        ),
        constants=loader.constants,
        mesh=mesh,
        seed=seed,
    )
    return BagClassifier(block["head"], options, classes, result.params, loader.mean, loader.sd)


def _head_options(block: Mapping[str, Any] | ConfigDict, loss: SlideLoss) -> dict[str, Any]:
    options = {"dropout": block["dropout"], "dtype": block["dtype"]}
    if block["head"] != "mean":
        options["hidden"] = block["hidden"]
        if loss.lambda_hard and loss.hard == "instance":
            options["instance_classes"] = 2
    return options


def _loss_fn(module, loss: SlideLoss) -> Callable:
    def loss_fn(params, constants, batch, key, train):
        instances = bags.of_batch(constants, batch)
        output = module.apply(
            {"params": params}, instances, batch["mask"], train=train, rngs={"dropout": key}
        )
        return loss.terms(output, batch)

    return loss_fn


class _Validation:
    """Figures per patient on the validation slides; all that chooses a checkpoint.

    `balanced_loss` is the mean over classes of their patients' cross-entropy.
    """

    def __init__(self, module, constants, batches: BagBatches, data: BagData, mesh):
        self._batches, self._data, self._mesh = batches, data, mesh
        self._constants = constants

        def probabilities(params, constants, batch):
            instances = bags.of_batch(constants, batch)
            output = module.apply({"params": params}, instances, batch["mask"])
            return jax.nn.softmax(output.logits), batch["bag"]

        copied = sharding.replicated(mesh)
        self._probabilities = jax.jit(probabilities, out_shardings=(copied, copied))

    def __call__(self, params: Any) -> dict[str, float | None]:
        outputs: list[tuple[jax.Array, jax.Array]] = []
        for batch in self._batches.dataset():  # made ahead in threads
            placed = sharding.place_batch(batch, self._mesh)
            outputs.append(self._probabilities(params, self._constants, placed))
            # Features of batches that wait would fill the device.
            jax.block_until_ready(outputs[max(len(outputs) - _IN_FLIGHT, 0)])
        rows, places = (np.concatenate(part) for part in zip(*jax.device_get(outputs), strict=True))
        rows, places = rows[places >= 0], places[places >= 0]
        order = np.argsort(places)
        rows, places = rows[order], places[order]
        frame = metrics.slide_frame(
            [self._data.cases[place] for place in places], self._data.labels[places], rows
        )
        labels, predicted = metrics.arrays(metrics.by_patient(frame))
        measured = metrics.compute(labels, predicted)
        names = ("loss", "auc", "accuracy", "balanced_accuracy")
        losses = metrics.cross_entropy(labels, predicted)
        balanced = np.mean([losses[labels == label].mean() for label in np.unique(labels)])
        return {name: measured[name] for name in names} | {"balanced_loss": float(balanced)}
