"""What training is told (TrainSettings) and what it carries from step to step (TrainState)."""

import dataclasses
from typing import Any

import flax.struct

from lrmil_jax.errors import ConfigError


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes; arrays only, so that a rebuilt state never retraces.

    There is no RNG: a step's key is folded from the seed and `step`. Fields are Any because JAX
    rebuilds the struct with shardings and shapes in place of arrays.

    Attributes:
      step: updates done.
      params, opt_state: of the model; of several models every leaf is [M, ...].
      best: of several models the best parameters of each so far; None for one model, whose best
        are in a checkpoint.
    """

    step: Any
    params: Any
    opt_state: Any
    best: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several:
    """M models that are trained as one: all that is theirs has a leading axis of models.

    Attributes:
      names: of the models, for messages, rows of metrics and folders.
      seeds: of each one's chance in the steps.
      examples: `TrainSettings.examples` of each.
      constants: which constants are each model's own, as `in_axes` of `jax.vmap`: 0 for [M, ...],
        None for what all share.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    examples: tuple[float, ...]
    constants: Any = None

    @property
    def axes(self) -> tuple[Any, ...]:
        """`in_axes` of a function of (params, step, constants, batch, key, index)."""
        return (0, None, self.constants, 0, 0, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Length, optimiser and rhythm of one training; steps are optimiser updates.

    Attributes:
      steps: updates in all.
      learning_rate: peak learning rate.
      warmup_steps: linear warm-up from 0, part of `steps`.
      schedule: "cosine" falls to 0 at `steps`; "constant" stays after the warm-up.
      weight_decay: decoupled; never on biases, norms, tokens and position embeddings.
      clip_norm: largest global gradient norm; None switches clipping off.
      accumulate: batches per update; the gradient is that of one big batch.
      examples: what an update's weighted sums of gradients are divided by. A constant keeps the
        weight of an example the same whatever stands beside it; None takes the weight that the
        update itself holds, which is the same where all examples weigh alike.
      eval_every: updates between two calls of `validate`; the last update is always evaluated.
      log_every: updates between two rows of training metrics.
      checkpoint_every: updates between two checkpoints; None: at every evaluation. A new best
        model is saved in any case.
      patience: evaluations without improvement before training stops; None: never.
      select: the metrics of `validate` that choose the best parameters, and their directions: the
        second decides where the first is equal or undefined.
      fsdp: shard parameters and optimiser over the devices instead of copying them.
      optimizer: "adamw" or "sgd" (with Nesterov momentum 0.9).

    Raises:
      ConfigError: a value is out of its range.
    """

    steps: int
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    schedule: str = "cosine"
    weight_decay: float = 1e-5
    clip_norm: float | None = 1.0
    accumulate: int = 1
    examples: float | int | None = None
    eval_every: int = 100
    log_every: int = 20
    checkpoint_every: int | None = None
    patience: int | None = None
    select: tuple[tuple[str, str], ...] = (("loss", "min"),)
    fsdp: bool = False
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        positive = ("steps", "accumulate", "eval_every", "log_every", "checkpoint_every")
        for name in (*positive, "patience", "clip_norm", "examples"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}: it must be above 0.")
        for name in ("learning_rate", "weight_decay", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must not be negative.")
        if self.warmup_steps > self.steps:
            raise ConfigError(
                f"warmup_steps is {self.warmup_steps}, more than the {self.steps} steps in all."
            )
        choices = {"schedule": ("cosine", "constant"), "optimizer": ("adamw", "sgd")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}: use one of {allowed}.")
        for choice in self.select:
            if len(choice) != 2 or choice[1] not in ("max", "min"):
                raise ConfigError(f"select has {choice!r}: give (metric name, 'max' or 'min').")
