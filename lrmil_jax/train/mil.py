"""MIL on bags of patch features: teacher, student and baselines are this one function.

What differs between them is which of the slide-level loss terms have a weight above 0.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from lrmil_jax import heads
from lrmil_jax.data.batching import BagBatches
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.errors import ConfigError
from lrmil_jax.tasks import Task
from lrmil_jax.train import bags, sharding
from lrmil_jax.train.bag_model import BagModel
from lrmil_jax.train.bags import BagData
from lrmil_jax.train.loop import fit
from lrmil_jax.train.state import TrainSettings

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

    def terms(
        self,
        output: heads.HeadOutput,
        batch: Mapping[str, Array],
        *,
        task: Task,
        head: heads.Head,
    ) -> dict[str, Array]:
        """Every term with a weight above 0, and their weighted sum `loss`, each [B].

        The head's own terms of the label (`Head.label_losses`) have their shares of it already. The
        batch holds `target` [B, T]; with teacher terms also `teacher_logits` [B, W], and `guide`
        and `covered` [B, N]: patches without any HR patch have no guide and are left out.
        """

        def of_logits(logits):
            return task.loss(logits, batch["target"])

        terms, own = {}, {}
        if self.lambda_ce:
            labels = batch["target"][:, 0].astype(jnp.int32) if task.has_classes else None
            own = head.label_losses(output, labels, batch["mask"], of_logits)
        if self.lambda_bag:
            terms["bag"] = task.distillation(
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
        total += self.lambda_ce * sum(own.values())
        return {"loss": total, **own, **terms}


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
    seed: int,
) -> BagModel:
    """Trains one MIL head on the training slides and picks the checkpoint on the validation ones.

    Args:
      name: for progress and messages.
      directory: of this training alone; a call after a kill goes on there.
      block: config block with head, options and optimisation (`config.bag_training`).
      loss: which terms and their weights.
      data: bags, targets, their task, splits and teacher outputs.
      seed: of initialisation, order of bags and dropout.

    Raises:
      ConfigError: the head is for classes and the task has none, or `select` is no metric of it.
      TrainingError: a bag is too long for the device, or training diverged.
    """
    task = data.task
    options = _head_options(block, loss)
    module = heads.create(block["head"], num_classes=task.width, **options)
    if module.needs_classes and not task.has_output_a_class:
        raise ConfigError(
            f"the head {block['head']} has an output a class, which the task {task.name} does not "
            "ask for; choose another head"
        )
    if module.needs_xy:
        data = bags.with_places(data)
    mesh = sharding.make_mesh()
    loader = bags.BagLoader(data, block, mesh, name)
    batches = loader.training(seed=seed)
    dummy = (jnp.zeros((1, 8, loader.mean.size)), jnp.ones((1, 8), bool))
    params = module.init(jax.random.key(seed), *dummy)["params"]
    result = fit(
        name=name,
        directory=directory,
        params=params,
        loss_fn=_loss_fn(module, loss, task),
        batches=batches.dataset(),
        validate=_Validation(module, loader.constants, loader.validation(), data, mesh),
        settings=train_settings(
            block,
            steps=block["epochs"] * batches.updates,
            select=task.select(block["select"], balance=block["balance"]),
            epoch=batches.updates,
            examples=batches.bags_of_an_update,
        ),
        constants=loader.constants,
        mesh=mesh,
        seed=seed,
    )
    return BagModel(block["head"], options, task, result.params, loader.mean, loader.sd)


def _head_options(block: Mapping[str, Any] | ConfigDict, loss: SlideLoss) -> dict[str, Any]:
    known = heads.defaults(heads.find(block["head"]))
    options = {key: block[key] for key in ("dropout", "dtype", "hidden") if key in known}
    if loss.lambda_hard and loss.hard == "instance":
        options["instance_classes"] = 2
    return options | heads.parse_options(block["head"], block["options"])


def _loss_fn(module, loss: SlideLoss, task: Task) -> Callable:
    def loss_fn(params, constants, batch, key, train):
        instances = bags.of_batch(constants, batch)
        options = {"xy": batch.get("xy"), "train": train, "rngs": {"dropout": key}}
        output = module.apply({"params": params}, instances, batch["mask"], **options)
        return loss.terms(output, batch, task=task, head=module)

    return loss_fn


class _Validation:
    """Figures per patient on the validation slides; all that chooses a checkpoint."""

    def __init__(self, module, constants, batches: BagBatches, data: BagData, mesh):
        self._batches, self._data, self._mesh = batches, data, mesh
        self._constants = constants

        def values(params, constants, batch):
            instances = bags.of_batch(constants, batch)
            places = batch.get("xy")
            output = module.apply({"params": params}, instances, batch["mask"], xy=places)
            return data.task.link(output.logits), batch["bag"]

        copied = sharding.replicated(mesh)
        self._values = jax.jit(values, out_shardings=(copied, copied))

    def __call__(self, params: Any) -> dict[str, float | None]:
        outputs: list[tuple[jax.Array, jax.Array]] = []
        for batch in self._batches.dataset():  # made ahead in threads
            placed = sharding.place_batch(batch, self._mesh)
            outputs.append(self._values(params, self._constants, placed))
            # Features of batches that wait would fill the device.
            jax.block_until_ready(outputs[max(len(outputs) - _IN_FLIGHT, 0)])
        rows, places = (np.concatenate(part) for part in zip(*jax.device_get(outputs), strict=True))
        rows, places = rows[places >= 0], places[places >= 0]
        # Patients in the order of their names, whatever the order of the batches.
        cases = np.array([self._data.cases[place] for place in places])
        order = np.lexsort((places, cases))
        rows, places, cases = rows[order].astype(np.float64), places[order], cases[order]
        _, first, patient = np.unique(cases, return_index=True, return_inverse=True)
        predicted = self._data.task.pooled(rows, patient)
        return self._data.task.measure(self._data.targets[places[first]], predicted)
