"""A trained MIL head as it is kept and used: on bags of any length."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from lrmil_jax import heads, tasks
from lrmil_jax.data import param_files
from lrmil_jax.data.patient_bags import PatientBags
from lrmil_jax.errors import WeightsError
from lrmil_jax.tasks import Task
from lrmil_jax.train import bags
from lrmil_jax.train.batches import standardise
from lrmil_jax.types import AnyArray

# Lengths that bags are filled up to when predicting: few, so that a cohort compiles few times.
_PREDICT_LENGTHS = tuple(256 * 2**power for power in range(14))
FILLING = 64  # rows that an exported bag is filled up by


@functools.lru_cache(maxsize=16)
def _applied(module: heads.Head) -> Any:
    """The computation of a head, compiled once for all models that have it, such as those of
    folds."""

    def apply(variables, features, mask, xy):
        instances = standardise(features, variables["mean"], variables["sd"])
        output = module.apply({"params": variables["params"]}, instances, mask, xy=xy)
        return output.logits, output.attention_logits

    return jax.jit(apply)


def _padded(
    module: heads.Head, features: Float[np.ndarray, "n D"], xy: Num[np.ndarray, "n 2"] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A bag, its mask and its places, filled up to one of few lengths."""
    count = len(features)
    length = next((size for size in _PREDICT_LENGTHS if size >= count), count)
    padded = np.zeros((1, length, features.shape[1]), features.dtype)
    padded[0, :count] = features
    places = None
    if module.needs_xy:
        if xy is None:
            name = heads.name_of(module)
            raise ValueError(f"the head {name} needs to know where patches lie: give xy")
        places = np.zeros((1, length, 2), np.float32)
        places[0, :count] = heads.in_patches(xy)
    return padded, np.arange(length)[None] < count, places


@dataclasses.dataclass(frozen=True)
class BagModel:
    """A trained head with all that a prediction needs: options, task, standardisation."""

    name: str
    options: dict[str, Any]
    task: Task
    params: Any
    mean: Float[np.ndarray, " D"]
    sd: Float[np.ndarray, " D"]

    @functools.cached_property
    def _module(self):
        return heads.create(self.name, num_classes=self.task.width, **self.options)

    @property
    def has_attention(self) -> bool:
        """Whether the head weighs patches at all."""
        return self._module.has_attention

    @property
    def needs_xy(self) -> bool:
        """Whether the head must know where patches lie."""
        return self._module.needs_xy

    def function(
        self,
        features: Float[AnyArray, "n D"],
        places: Float[AnyArray, "n 2"] | None = None,
        *,
        filling: int = FILLING,
    ) -> tuple[Float[Array, " V"], Float[Array, " n"]]:
        """What is predicted of one bag, and attention that sums to 1 (even of a head without), in
        JAX alone: to be exported, if need be for any number of patches.

        Args:
          features: of the bag's patches.
          places: where they lie, in patches; for heads with positions.
          filling: rows of filling: heads that take the k most attended must know that there are k.
        """
        count, mask = features.shape[0], jnp.ones((1, features.shape[0]), bool)
        if filling:
            mask = (jnp.arange(count + filling) < count)[None]
            features = jnp.pad(features, ((0, filling), (0, 0)))
            places = None if places is None else jnp.pad(places, ((0, filling), (0, 0)))
        places = None if places is None else places[None]
        logits, scores = _applied(self._module)(self.variables, features[None], mask, places)
        scores = jnp.zeros_like(mask[0], jnp.float32) if scores is None else scores[0]
        scores = scores[:count] if filling else scores
        return jnp.asarray(self.task.link(logits))[0], jax.nn.softmax(scores)

    def predict_slide(
        self, store: bags.BagStore, slide: int
    ) -> tuple[Float[np.ndarray, " W"], Float[np.ndarray, " n"]]:
        """`predict` of the slide at this place in a store."""
        xy = store.places(slide)["xy"] if self._module.needs_xy else None
        return self.predict(store.embedding(slide), xy)

    def predict(
        self, features: Float[np.ndarray, "n D"], xy: Num[np.ndarray, "n 2"] | None = None
    ) -> tuple[Float[np.ndarray, " W"], Float[np.ndarray, " n"]]:
        """Logits and attention logits of one bag; zeros for a head without attention.

        Args:
          features: of the bag's patches, as stored.
          xy: where they lie, level-0 px; a head with positions must have it, others ignore it.
        """
        padded, present, places = _padded(self._module, features, xy)
        logits, attention = _applied(self._module)(self.variables, padded, present, places)
        count = len(features)
        attention = np.zeros(count) if attention is None else np.asarray(attention)[0, :count]
        return np.asarray(logits)[0], attention.astype(np.float32)

    @property
    def variables(self) -> dict[str, Any]:
        """All numbers that a prediction needs."""
        return {"params": self.params, "mean": self.mean, "sd": self.sd}

    @property
    def kind(self) -> tuple[Any, str]:
        """What models must have in common to be computed as one: head, options, and whose slides
        a bag holds."""
        return self._module, self.task.pooling

    def on(self, store: bags.BagStore, cases: Sequence[str]) -> "SlidePredictions":
        """What the head says of the slides of a store; `cases` as for `PatientBags`."""
        return SlidePredictions(self, store, cases)

    def save(self, path: Path, **facts: Any) -> None:
        """Writes the classifier as one safetensors file; `facts` join its metadata."""
        metadata = {"head": self.name, "options": self.options, "task": self.task.facts()}
        tree = {"head": self.params, "standardise": {"mean": self.mean, "sd": self.sd}}
        param_files.save_params(path, tree, metadata | facts)

    @classmethod
    def load(cls, path: Path) -> "BagModel":
        """Reads what `save` wrote.

        Raises:
          WeightsError: the file is missing, broken or of another version.
        """
        tree, metadata = param_files.load_params(path)
        try:
            return cls(
                name=metadata["head"],
                options=metadata["options"],
                task=tasks.of_facts(metadata["task"]),
                params=tree["head"],
                mean=tree["standardise"]["mean"],
                sd=tree["standardise"]["sd"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{path} holds no trained head ({error!r}); copy the model folder again"
            ) from error


class SlidePredictions:
    """What a head says of each slide of a store, alone or, where a patient is one bag, with the
    other slides of its patient."""

    def __init__(self, head: "BagModel | BagModels", store: bags.BagStore, cases: Sequence[str]):
        self._head, self._store = head, store
        self._bags = PatientBags(store, cases) if head.task.one_bag else None
        self._last: tuple[int, Any] = -1, None

    def slide(self, place: int) -> tuple[Float[np.ndarray, "*M W"], Float[np.ndarray, " n"]]:
        """Logits of the slide at this place, or of its patient's bag, of each of `BagModels`, and
        attention logits of its patches: a bag's slides weigh against each other too."""
        if self._bags is None:
            return self._head.predict_slide(self._store, place)
        bag = int(np.searchsorted(self._bags.first, place, side="right")) - 1
        if bag != self._last[0]:  # the slides of a bag are asked for one after the other
            self._last = bag, self._head.predict_slide(self._bags, bag)
        logits, attention = self._last[1]
        edges = np.cumsum([self._store.sizes[slide] for slide in self._bags.slides(bag)])
        return logits, np.split(attention, edges[:-1])[place - self._bags.first[bag]]


class BagModels:
    """Trained heads of one `kind` that read each bag together.

    Attributes:
      task: of the first.
    """

    def __init__(self, models: Sequence[BagModel]):
        """
        Raises:
          ValueError: they are not of one kind.
        """
        if any(model.kind != models[0].kind for model in models):
            raise ValueError("models that are computed as one must be of one kind")
        self._module, self.task = models[0].kind[0], models[0].task
        self._variables = bags.stacked([model.variables for model in models])
        self._apply = jax.jit(jax.vmap(_applied(self._module), (0, None, None, None)))

    def predict_slide(
        self, store: bags.BagStore, slide: int
    ) -> tuple[Float[np.ndarray, "M W"], Float[np.ndarray, " n"]]:
        """Logits of all models for the slide at this place in a store; attention is not told."""
        xy = store.places(slide)["xy"] if self._module.needs_xy else None
        bag = store.embedding(slide)
        logits, _ = self._apply(self._variables, *_padded(self._module, bag, xy))
        return np.asarray(logits)[:, 0], np.zeros(len(bag), np.float32)

    def on(self, store: bags.BagStore, cases: Sequence[str]) -> SlidePredictions:
        """As `BagModel.on`, with logits [M, W]."""
        return SlidePredictions(self, store, cases)
