"""Pure steps: per-example terms -> weighted sums -> gradient -> update.

Sums and weights are kept apart until the very end, so that a mean over devices, over
accumulated batches or over a whole validation set is exact whatever the padding.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lrmil_jax.train import sharding
from lrmil_jax.train.state import Several, TrainState

# loss_fn(params, constants, batch, key, train) -> {"loss": [B], other terms: [B]}
LossFn = Callable[[Any, Any, dict[str, Any], Any, bool], dict[str, Array]]

_SMALLEST_WEIGHT = 1e-8
# What the arguments (params, step, constants, batch, key, index) are to `Several.over_models`.
BATCH_ROLES = ("model", None, "constants", "stream", "stream", None)


@flax.struct.dataclass
class Totals:
    """Sums over weighted examples: of every term, of the weights, and the gradient of the loss.

    Fields are Any because JAX rebuilds the struct with shardings and shapes in place of arrays.
    """

    terms: Any
    weight: Any
    grads: Any = None


def weighted_totals(terms: dict[str, Array], weight: Float[Array, " B"]) -> Totals:
    """Sums weight * term in float32 over the examples [B]; weight 0 silences a non-finite term."""
    weight = weight.astype(jnp.float32)
    for name, term in terms.items():
        if term.shape != weight.shape:
            raise ValueError(
                f"loss term {name!r} has shape {term.shape}: one number for each of the "
                f"{weight.shape[0]} examples is wanted"
            )
    sums = {
        name: jnp.sum(jnp.where(weight > 0, weight * term.astype(jnp.float32), 0.0))
        for name, term in terms.items()
    }
    return Totals(terms=sums, weight=jnp.sum(weight))


def merge(left: Totals, right: Totals) -> Totals:
    """The totals of both sets of examples together."""
    return jax.tree.map(jnp.add, left, right)


def batch_key(key: Any, step: Any, index: Any) -> Any:
    """The key of the chance in one batch of one update."""
    return jax.random.fold_in(jax.random.fold_in(key, step), index)


def gradients(loss_fn: LossFn, params, constants, batch, key) -> Totals:
    """Totals of one batch, with the gradient of the weighted SUM of the loss."""

    def total_loss(params):
        terms = loss_fn(params, constants, batch, key, True)
        totals = weighted_totals(terms, batch["weight"])
        return totals.terms["loss"], totals

    (_, totals), grads = jax.value_and_grad(total_loss, has_aux=True)(params)
    return totals.replace(grads=grads)


def update(
    tx: optax.GradientTransformation,
    state: TrainState,
    totals: Totals,
    examples: float | int | Array | None = None,
    rate: Array | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One optimiser update; gives the new state and the step's sums.

    Args:
      tx: the optimiser.
      state: before the update.
      totals: of all batches of the update.
      examples: see `TrainSettings`; None divides by the update's own weight.
      rate: a multiple of the optimiser's learning rate; None is 1.
    """
    own = jnp.maximum(totals.weight, _SMALLEST_WEIGHT)
    weight = own if examples is None else jnp.float32(examples)
    grads = jax.tree.map(lambda grad: grad / weight.astype(grad.dtype), totals.grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    if rate is not None:  # every optimiser of `optim` is linear in it
        updates = jax.tree.map(lambda change: rate.astype(change.dtype) * change, updates)
    params = optax.apply_updates(state.params, updates)
    measured = {
        "terms": totals.terms,
        "weight": totals.weight,
        "grad_norm": optax.tree.norm(grads),
    }
    return TrainState(state.step + 1, params, opt_state, state.best), measured


@functools.partial(jax.jit, static_argnums=1)
def finite(tree: Any, models: int) -> jax.Array:
    """[models], whether all that belongs to each is finite."""
    checks = [
        jnp.isfinite(leaf).reshape(models, -1).all(-1)
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.stack(checks).all(0) if checks else jnp.ones(models, bool)


@functools.partial(jax.jit, donate_argnums=0)
def kept(state: TrainState, better: jax.Array) -> TrainState:
    """The parameters of those models [M] that are better than ever become their best; of one
    model [] its own."""

    def keep(best, new):
        return jnp.where(better.reshape(*better.shape, *[1] * (new.ndim - better.ndim)), new, best)

    return state.replace(best=jax.tree.map(keep, state.best, state.params))


def mean_of_updates(measured: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Weighted means [models] of every term, and of the gradient's norm, over some updates as
    `Stepper.update` measures them."""
    # [updates, models] of every measurement.
    table = jax.tree.map(lambda *one: np.array(one, np.float64).reshape(len(one), -1), *measured)
    weight = np.maximum(table["weight"].sum(0), _SMALLEST_WEIGHT)
    means = {name: one.sum(0) / weight for name, one in table["terms"].items()}
    return means | {"grad_norm": table["grad_norm"].mean(0)}


class Stepper:
    """Jitted updates from one batch or from several accumulated ones.

    Gradient and update are two computations: every batch shape compiles the first anew, and
    without the second in it that takes half the time.

    Args:
      loss_fn: see `LossFn`.
      tx: the optimiser.
      mesh: from `make_mesh`.
      shardings: of the state.
      examples: see `TrainSettings`.
      several: models whose state has a leading axis [M], and batches [S, B, ...] and keys [S] one
        of streams; their `examples` take the place of those above.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        tx: optax.GradientTransformation,
        mesh: Mesh,
        shardings: Any,
        examples: float | int | None = None,
        *,
        several: Several | None = None,
    ):
        copied = sharding.replicated(mesh)
        totals = Totals(terms=copied, weight=copied, grads=shardings.params)

        def batch_totals(params, step, constants, batch, key, index):
            summed = gradients(loss_fn, params, constants, batch, batch_key(key, step, index))
            return summed, summed.weight

        one_update, rates = functools.partial(_updated, tx), None
        if several is not None:
            batch_totals = several.over_models(batch_totals, BATCH_ROLES)
            examples = jnp.repeat(jnp.asarray(several.examples, jnp.float32), several.points)
            models = TrainState(step=None, params=0, opt_state=0, best=0)
            rates = several.rates and jnp.asarray(several.rates, jnp.float32)
            axes = (models, 0, 0, 0, None if rates is None else 0)
            one_update = jax.vmap(one_update, axes, (models, 0))
        options = sharding.compiler_options(mesh)
        self._totals = jax.jit(
            batch_totals, out_shardings=(totals, copied), compiler_options=options
        )
        self._merge = jax.jit(merge, out_shardings=totals, donate_argnums=0)
        self._update = jax.jit(
            lambda state, summed, active: one_update(state, summed, examples, active, rates),
            out_shardings=(shardings, copied),
            donate_argnums=0,
        )

    def add(
        self, state: TrainState, constants, batch, key, index: int, summed: Totals | None
    ) -> tuple[Totals, jax.Array]:
        """The sums of an update with those of its next placed batch added; `summed` is used up.

        Returns:
          The sums, and a number that is there when the batch has been computed.
        """
        totals, done = self._totals(state.params, state.step, constants, batch, key, index)
        return (totals if summed is None else self._merge(summed, totals)), done

    def update(
        self, state: TrainState, summed: Totals, active: Any = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """(next state, sums of the step) from those of its batches; both are used up. `active` [M]
        says which of several models still learn."""
        return self._update(state, summed, active)


def _updated(
    tx: optax.GradientTransformation,
    state: TrainState,
    summed: Totals,
    examples: Any,
    active: Any,
    rate: Any,
) -> tuple[TrainState, dict[str, Any]]:
    """`update`, of a model among several only as long as it is active."""
    after, measured = update(tx, state, summed, examples, rate)
    if active is not None:
        kept = jax.tree.map(
            lambda new, old: jnp.where(active, new, old),
            (after.params, after.opt_state),
            (state.params, state.opt_state),
        )
        after = TrainState(after.step, *kept, best=state.best)
    return after, measured


class Evaluator:
    """Weighted means of a loss function's terms over a set of batches, without training."""

    def __init__(
        self,
        loss_fn: LossFn,
        *,
        constants: Any = None,
        mesh: Mesh | None = None,
        keep: Sequence[str] = (),
    ):
        """Prepares one computation.

        Args:
          loss_fn: as for `fit`.
          constants: as for `fit`.
          mesh: from `make_mesh`; default: all devices.
          keep: terms [B, ...] of which `with_examples` gives every example instead of the mean.
        """
        self._mesh = sharding.make_mesh() if mesh is None else mesh
        self._constants = sharding.replicate(constants, self._mesh)
        copied = sharding.replicated(self._mesh)

        def totals(params, constants, batch):
            terms = loss_fn(params, constants, batch, jax.random.key(0), False)
            kept = {name: terms.pop(name) for name in keep}
            return weighted_totals(terms, batch["weight"]), kept, batch["weight"]

        options = sharding.compiler_options(self._mesh)
        self._totals = jax.jit(totals, out_shardings=copied, compiler_options=options)

    def __call__(self, params: Any, batches: Iterable[dict[str, Any]]) -> dict[str, float]:
        """Means over every example of `batches` (host arrays, as for `fit`), each weighted."""
        return self.with_examples(params, batches)[0]

    def with_examples(
        self, params: Any, batches: Iterable[dict[str, Any]]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """The means, and {term: [n, ...]} of the terms to keep, without examples of weight 0."""
        sums: dict[str, float] = collections.defaultdict(float)
        rows: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        weight = 0.0
        for batch in batches:
            placed = sharding.place_batch(batch, self._mesh)
            totals, kept, weights = jax.device_get(self._totals(params, self._constants, placed))
            weight += float(totals.weight)
            for name, value in totals.terms.items():
                sums[name] += float(value)
            for name, values in kept.items():
                rows[name].append(values[weights > 0])
        means = {name: value / max(weight, _SMALLEST_WEIGHT) for name, value in sums.items()}
        return means, {name: np.concatenate(parts) for name, parts in rows.items()}
