"""What every MIL head returns."""

from typing import Any

import flax.struct


@flax.struct.dataclass
class HeadOutput:
    """One bag per row.

    The fields are `Any` because JAX rebuilds the struct with tracers, shape structs, shardings
    or vmapped arrays in place of its leaves; a shape string here would refuse those.

    Attributes:
      logits: `[B, C]` f32, class logits of each bag.
      attention_logits: `[B, N]` f32 before the softmax over the bag, 0 at masked instances;
        None for a head without attention.
      instance_logits: `[B, N, K]` f32 class logits of each instance (0 at masked ones), or None.
      class_attention_logits: `[B, N, C]` f32 before the softmax over the bag, 0 at masked
        instances, for a head with an attention per class; else None. `attention_logits` are then
        the logits of the mean of the classes' attention.
      aux: arrays `[B, ...]` by name that the head's own loss needs, or None.
    """

    logits: Any
    attention_logits: Any = None
    instance_logits: Any = None
    class_attention_logits: Any = None
    aux: Any = None
