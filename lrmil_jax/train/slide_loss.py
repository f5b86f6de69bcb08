"""What a head learns of a slide: its label, and what a teacher says of it."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from lrmil_jax import heads
from lrmil_jax.distill import slide as slide_losses
from lrmil_jax.tasks import Task
from lrmil_jax.train.joint import carried


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

        A `joint` task's loss of the labels was computed before (`train.joint`), and is carried on.
        The head's own terms of the label (`Head.label_losses`) have their shares of it already. The
        batch holds `target` [B, T]; with teacher terms also `teacher_logits` [B, W], and `guide`
        and `covered` [B, N]: patches without any HR patch have no guide and are left out.
        """

        def of_logits(logits):
            if task.joint:
                return carried(logits, batch["joint_value"], batch["joint_slope"])
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
