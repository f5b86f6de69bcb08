"""What the trainer asks of a MIL head, whatever it is called."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from lrmil_jax.heads.output import HeadOutput
from lrmil_jax.types import AnyArray


class Head(nn.Module):
    """A MIL head: its options are the fields of the module, its nature these class attributes.

    A head is called as `head(bags [B, N, D], mask [B, N], *, xy=None, train=False)`, where `xy`
    [B, N, 2] are places in units of patches that heads without positions ignore, and returns a
    `HeadOutput`. One that `packs` also takes a row of packed bags [1, T, D] with `packing=`, where
    N is at least the longest bag's size.

    Attributes:
      has_attention: it says how much each instance counts, so it can guide and be guided.
      needs_classes: its own loss reads class labels, so it is for classification alone.
      needs_xy: it uses where instances lie.
      order_free: the order of a bag's rows changes nothing.
      packs: it takes bags side by side in one row, see `Packing`.
      reads_cells: its instances are LR patches beside their HR patches (`heads.cells`), as the
        methods make them whose LR patches choose; its `attention_logits` say which are chosen.
      learns_by_chance: parameters that learn in training alone, by what is drawn there.
      choices: what an option that is a word may be.
      limits: lowest and highest value of an option that is a number.
    """

    has_attention = True
    needs_classes = False
    needs_xy = False
    order_free = True
    packs = False
    reads_cells = False
    learns_by_chance: ClassVar[tuple[str, ...]] = ()
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {}

    @classmethod
    def has_own_loss(cls) -> bool:
        """Whether `label_losses` is more than the loss of the logits."""
        return cls.label_losses is not Head.label_losses

    def instance_bytes(self, features: int) -> int:
        """Bytes of a device that training takes for each instance of a long bag, about: the
        features as stored, in float32 and once more by chunks, and what `instance_floats` says.

        Args:
          features: D, of an instance.
        """
        return 10 * features + 4 * self.instance_floats()

    def instance_floats(self) -> int:
        """Numbers of an instance that are in memory at once, what the gradient needs included; by
        default those of a projection and of an attention's hidden layers."""
        return 4 * getattr(self, "width", 0) + 8 * getattr(self, "hidden", 0)

    def label_losses(
        self,
        output: HeadOutput,
        labels: Any,
        mask: Bool[AnyArray, "B N"],
        of_logits: Callable[[Float[AnyArray, "B C"]], Float[Array, " B"]],
    ) -> dict[str, Float[Array, " B"]]:
        """The head's own terms, already weighted, in place of the loss of its logits.

        Args:
          output: of this head, on these bags.
          labels: of the bags; class indices [B] where `needs_classes`.
          mask: True for real instances.
          of_logits: the task's loss of class logits against the labels of these bags.

        Returns:
          Terms [B] by name; their sum is what the head learns from the labels.
        """
        del labels, mask
        return {"ce": of_logits(output.logits)}
