"""What a head learns of a slide: its label, and what a teacher says of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from lrmil_jax import heads
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.tasks import Task
from lrmil_jax.train.joint import carried
from lrmil_jax.types import Number

# Weights of terms; a term whose weight is the number 0 is not computed at all.
_WEIGHTS = ("lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard")
_COUNTS = ("counted", "guide")
_SECOND = "second_"  # of the other slide of a mixed bag
_ARRAYS = (*_WEIGHTS, "temperature_bag", "temperature_attn", *_COUNTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlideLoss:
    """Weights and options of L_stage2 (`method.md` part 2); a teacher has cross-entropy alone.

    All but `topk` and `hard` may be arrays [], so that models which differ in them are one program.

    Attributes:
      counted: how many of the `topk` count; None: all.
      guide: which of several guides, where the batch's have an axis of them.
    """

    KEYS: ClassVar[tuple[str, ...]] = (
        *("lambda_ce", "lambda_bag", "lambda_soft", "lambda_hard"),
        *("temperature_bag", "temperature_attn", "topk", "hard", "guide"),
    )  # of a config block

    lambda_ce: Number = 1.0
    lambda_bag: Number = 0.0
    lambda_soft: Number = 0.0
    lambda_hard: Number = 0.0
    temperature_bag: Number = 1.0
    temperature_attn: Number = 1.0
    topk: int = 8
    hard: str = "rank"
    counted: Number | None = None
    guide: Number | None = None

    @classmethod
    def of(cls, block: Mapping[str, Any] | ConfigDict, guides: Sequence[str]) -> "SlideLoss":
        """The loss of a config block that has KEYS; `guides` are those that batches hold."""
        options = {key: block[key] for key in cls.KEYS if key != "guide"}
        return cls(guide=guides.index(block["guide"]), **options)

    @property
    def by_instance(self) -> bool:
        """Whether the head needs a classifier of instances."""
        return not _off(self.lambda_hard) and self.hard == "instance"

    def terms(
        self,
        output: heads.HeadOutput,
        batch: Mapping[str, Array],
        *,
        task: Task,
        head: heads.Head,
    ) -> dict[str, Array]:
        """Every term with a weight above 0, and their weighted sum `loss`, each [B].

        A `joint` task's loss of the labels was computed before (`train.joint`), and is carried on.
        The head's own terms of the label (`Head.label_losses`) have their shares of it already. The
        batch holds `target` [B, T]; with teacher terms also `teacher_logits` [B, W], and `guide`
        and `covered` [B, N]: patches without any HR patch have no guide and are left out. Of bags
        that are mixed of two slides (`data.mixup`) the terms of labels and of the teacher's logits
        are the mean of both slides' by `label_share`.
        """
        own, terms = self._of_slide(output, batch, task, head)
        if "share" in batch:
            second = {name.removeprefix(_SECOND): values for name, values in batch.items()
                      if name.startswith(_SECOND)}  # fmt: skip
            others = self._of_slide(output, {**batch, **second}, task, head)
            own, terms = (
                _mean(one, other, batch["label_share"])
                for one, other in zip((own, terms), others, strict=True)
            )
        if not (_off(self.lambda_soft) and _off(self.lambda_hard)):
            guided = self._guided(batch)
        if not _off(self.lambda_soft):
            terms["soft"] = slide_losses.attention_kl_loss(
                output.attention_logits, *guided, temperature=self.temperature_attn
            )
        if not _off(self.lambda_hard):
            options = {"k": self.topk, "counted": self.counted}
            if self.hard == "rank":
                attention = output.attention_logits
                terms["hard"] = slide_losses.attention_rank_loss(attention, *guided, **options)
            else:
                instances = output.instance_logits
                terms["hard"] = slide_losses.instance_loss(instances, *guided, **options)
        total = sum(getattr(self, f"lambda_{name}") * value for name, value in terms.items())
        total += self.lambda_ce * sum(own.values())
        return {"loss": total, **own, **terms}

    def _of_slide(
        self, output: heads.HeadOutput, batch: Mapping[str, Array], task: Task, head: heads.Head
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Terms of the label, and that of the teacher's logits."""

        def of_logits(logits):
            if task.joint:
                return carried(logits, batch["joint_value"], batch["joint_slope"])
            return task.loss(logits, batch["target"])

        own, terms = {}, {}
        if not _off(self.lambda_ce):
            labels = batch["target"][:, 0].astype(jnp.int32) if task.has_classes else None
            own = head.label_losses(output, labels, batch["mask"], of_logits)
        if not _off(self.lambda_bag):
            terms["bag"] = task.distillation(
                output.logits, batch["teacher_logits"], temperature=self.temperature_bag
            )
        return own, terms

    def _guided(self, batch: Mapping[str, Array]) -> tuple[Array, Array]:
        """The guide, and which patches have one."""
        guide = batch["guide"] if self.guide is None else batch["guide"][..., self.guide]
        mask = batch["mask"] & batch["covered"]
        if "share" in batch:
            guide = slide_losses.mixed_guide(
                guide, mask, second=batch["second"], share=batch["share"]
            )
        return guide, mask


def _mean(one: Mapping[str, Array], other: Mapping[str, Array], share: Array) -> dict[str, Array]:
    return {name: share * one[name] + (1 - share) * other[name] for name in one}


def _off(weight: Any) -> bool:
    return isinstance(weight, int | float) and weight == 0


def together(losses: Sequence[SlideLoss]) -> tuple[SlideLoss, dict[str, np.ndarray]]:
    """Several losses as one: what they have in common, and arrays [M] of what they differ in, with
    which `dataclasses.replace` makes each of them again.

    Raises:
      ValueError: they differ in what no array can say.
    """
    whole = [dataclasses.replace(one, counted=one.counted or one.topk) for one in losses]
    kinds = {one.hard for one in whole if not _off(one.lambda_hard)}
    if len(kinds) > 1:
        raise ValueError("losses of attention and losses of instances are no one program")
    arrays = {}
    for name in _ARRAYS:
        values = [getattr(one, name) for one in whole]
        if len(set(values)) > 1:
            arrays[name] = np.array(values, np.int32 if name in _COUNTS else np.float32)
    most = max(one.topk for one in whole)
    return dataclasses.replace(whole[0], topk=most, hard=(*kinds, "rank")[0]), arrays
