"""What training is told (TrainSettings) and what it carries from step to step (TrainState)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax

from lrmil_jax.errors import ConfigError


@flax.struct.dataclass
class TrainState:
    """Everything that an update changes; arrays only, so that a rebuilt state never retraces.

    There is no RNG: a step's key is folded from the seed and `step`. Fields are Any because JAX
    rebuilds the struct with shardings and shapes in place of arrays.

    Attributes:
      step: updates done.
      params, opt_state: of the model; of several models every leaf is [M, ...].
      best: the best parameters so far, of several models each one's own; None for a large model,
        whose best are in a checkpoint.
    """

    step: Any
    params: Any
    opt_state: Any
    best: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several:
    """M models that are trained as one: S streams of batches, and P models that learn from each.

    Models lie in the order of their streams. What is a model's own has a leading axis [M], what is
    a stream's own [S]; a batch is read once for all models of its stream.

    Attributes:
      names: [M] of the models, for messages, rows of metrics and folders.
      seeds: [S] of the chance in the steps of each stream's models.
      examples: [S] `TrainSettings.examples` of each stream.
      rates: [M] each model's learning rate as a multiple of `TrainSettings.learning_rate`.
      by_stream, by_model: names of those constants that are each stream's or each model's own; all
        others are shared.
    """

    names: tuple[str, ...]
    seeds: tuple[int, ...]
    examples: tuple[float, ...]
    rates: tuple[float, ...] | None = None
    by_stream: tuple[str, ...] = ()
    by_model: tuple[str, ...] = ()

    @property
    def points(self) -> int:
        """P, models that learn from one stream."""
        return len(self.names) // len(self.seeds)

    def over_models(
        self, function: Callable[..., Any], roles: Sequence[str | None]
    ) -> Callable[..., Any]:
        """A function of one model as one of all, whose results have a leading axis [M].

        Args:
          function: of arrays.
          roles: of each argument: "model" and "stream" say what its leading axis is, "constants" a
            dict of which some entries have one, None none at all.
        """
        inner = [0 if role == "model" else None for role in roles]
        outer = [None if role is None else 0 for role in roles]
        split = (len(self.seeds), self.points)

        def whole(*arguments):
            folded, axes = list(arguments), (list(inner), list(outer))
            for place, role in enumerate(roles):
                if role == "model":
                    folded[place] = _split(arguments[place], split)
                elif role == "constants":
                    axes[0][place], axes[1][place] = self._constant_axes(arguments[place])
                    own = {name: _split(arguments[place][name], split) for name in self.by_model}
                    folded[place] = {**arguments[place], **own}
            results = jax.vmap(jax.vmap(function, axes[0]), axes[1])(*folded)
            return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), results)

        return whole

    def _constant_axes(self, constants: Mapping[str, Any]) -> tuple[dict, dict]:
        """`in_axes` of constants, over the models of a stream and over streams."""
        models = {name: 0 if name in self.by_model else None for name in constants}
        own = (*self.by_stream, *self.by_model)
        return models, {name: 0 if name in own else None for name in constants}


def _split(tree: Any, shape: tuple[int, int]) -> Any:
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), tree)


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
      checkpoint_every: updates between two checkpoints; None: at evaluations.
      checkpoint_seconds: without `checkpoint_every`, an evaluation is followed by a checkpoint only
        where the last is so long ago. With several processes, and where a new best model is too
        large to be kept beside the present one, it always is.
      patience: evaluations without improvement before training stops; None: never.
      select: the metrics of `validate` that choose the best parameters, and their directions: the
        second decides where the first is equal or undefined.
      fsdp: shard parameters and optimiser over the devices instead of copying them.
      optimizer: "adamw" or "sgd" (with Nesterov momentum 0.9).
      layer_decay: the learning rate of an encoder's block as a share of that of the block behind.

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
    checkpoint_seconds: float = 0.0
    patience: int | None = None
    select: tuple[tuple[str, str], ...] = (("loss", "min"),)
    fsdp: bool = False
    optimizer: str = "adamw"
    layer_decay: float | int = 1.0

    def __post_init__(self) -> None:
        positive = ("steps", "accumulate", "eval_every", "log_every", "checkpoint_every")
        for name in (*positive, "patience", "clip_norm", "examples"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}: it must be above 0.")
        for name in ("learning_rate", "weight_decay", "warmup_steps", "checkpoint_seconds"):
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
