"""Images through a frozen encoder: one fixed batch shape, split over the devices, no pause between
slides: a thread reads and decodes while the device computes, and batches go across slides."""

import collections
import dataclasses
import itertools
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from lrmil_jax.encoders import Transform, products
from lrmil_jax.errors import UserError
from lrmil_jax.train import sharding
from lrmil_jax.types import AnyArray

# Batches that may be on their way: the host fills the next while the device computes.
_IN_FLIGHT = 2
# Batches that may lie ready for the device, so that opening a slide or a slow tile is no pause.
_READY = 4

# Images of a slide: groups of any size, each an array [n, px, px, 3] or a sequence of [px, px, 3].
Groups = Iterable[Sequence[UInt8[np.ndarray, "px px 3"]] | UInt8[np.ndarray, "_ px px 3"]]

Item = TypeVar("Item")
Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen encoder with everything that binds its features to it.

    Attributes:
      name, options, module, params: what it is.
      transform: of its images.
      weights_hash: of the file of its parameters.
      eight_bits: `BatchEncoder` multiplies by `products.eight_bits`; the module itself, which stage
        1 trains, does not.
    """

    name: str
    options: dict[str, Any]
    module: Any
    params: Any
    transform: Transform
    weights_hash: str
    eight_bits: bool = False

    def identity(self) -> dict[str, Any]:
        """What must be the same for two sets of features to be comparable."""
        return {
            "name": self.name,
            "options": self.options,
            "weights": self.weights_hash,
            "transform": dataclasses.asdict(self.transform),
        }


class BatchEncoder:
    """Encodes images of one size in batches of one shape, so it compiles once.

    What an image's features are does not depend on what else is in its batch, so neither on the
    slides before it, nor on where a killed run went on.

    Args:
      encoder: module, parameters and transform.
      batch: images per step; only the very last one is filled up. Also an attribute.
      blocks: blocks whose CLS is wanted beside the embedding.
      mesh: devices to split over; default all of this process.
      fsdp: split the parameters over the devices too, instead of copying them.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        batch: int,
        blocks: Sequence[int] = (),
        mesh: Any = None,
        fsdp: bool = False,
    ):
        self._mesh = sharding.local_mesh() if mesh is None else mesh
        self.batch = batch
        blocks = tuple(blocks)

        def apply(params, images):
            normalised = encoder.transform.normalise(images)
            with products.eight_bits(encoder.eight_bits):
                output = encoder.module.apply({"params": params}, normalised, blocks=blocks)
            cls = [output.cls[block] for block in blocks]
            return {
                "embedding": output.embedding.astype(jnp.float32),
                **({"cls": jnp.stack(cls, 1).astype(jnp.float32)} if blocks else {}),
            }

        px = encoder.transform.px
        params = cast_ahead(apply, encoder.params, np.zeros((1, px, px, 3), np.uint8))
        self._params = sharding.place_params(params, self._mesh, fsdp=fsdp)
        self._function = apply
        self._apply = jax.jit(
            apply,
            out_shardings=sharding.replicated(self._mesh),
            compiler_options=sharding.compiler_options(self._mesh),
        )

    def __call__(
        self, images: Iterable[UInt8[np.ndarray, "_ px px 3"]]
    ) -> dict[str, Float[np.ndarray, "n ..."]]:
        """`embedding` [n, D] and, with blocks, `cls` [n, L, W] of all images in order; {} of none.

        Args:
          images: groups of any size, one after another; only a few batches are held at once.
        """
        ((_, encoded),) = self.stream([(None, images)])
        if isinstance(encoded, UserError):
            raise encoded
        return encoded

    def stream(
        self, slides: Iterable[tuple[Key, Groups]]
    ) -> Iterator[tuple[Key, dict[str, np.ndarray] | UserError]]:
        """`stream` with this encoder alone."""
        for key, encoded in stream([self], slides):
            yield key, encoded if isinstance(encoded, UserError) else encoded[0]

    def apply(self, images: UInt8[AnyArray, "n px px 3"]) -> dict[str, jax.Array]:
        """What the device does with one whole batch, without waiting for it."""
        return self._apply(self._params, images)

    def function(self) -> Callable[[UInt8[AnyArray, "n px px 3"]], Float[Array, "n D"]]:
        """Images to embeddings, parameters within: to be exported."""
        params = jax.device_get(self._params)
        return lambda images: self._function(params, images)["embedding"]

    def dispatch(self, images: UInt8[np.ndarray, "n px px 3"] | None) -> dict[str, jax.Array]:
        """`apply` of a whole batch on the host; {} of None."""
        if images is None:
            return {}
        return self.apply(sharding.place_batch({"images": images}, self._mesh)["images"])


def cast_ahead(function: Callable[..., Any], params: Any, *args: Any) -> Any:
    """The parameters in the types that a function of them casts them to, cast once for all calls.

    Of frozen parameters: half the memory and no casts in every call where the encoder computes in
    16 bits. The function gives the same, because only what it casts first of all is cast.

    Args:
      function: of the parameters and `args`; it is traced, not computed.
      params: a tree of arrays on the host or on devices, where they stay.
      *args: arrays as the function is called with.
    """
    leaves, structure = jax.tree.flatten(params)
    program = jax.make_jaxpr(function)(params, *args).jaxpr
    uses: dict[Any, set[Any]] = {variable: set() for variable in program.invars[: len(leaves)]}
    for equation in program.eqns:
        for variable in equation.invars:
            if isinstance(variable, Hashable) and variable in uses:
                is_cast = equation.primitive.name == "convert_element_type"
                uses[variable].add(equation.params["new_dtype"] if is_cast else None)
    for variable in program.outvars:
        if isinstance(variable, Hashable) and variable in uses:
            uses[variable].add(None)
    cast = [
        leaf.astype(next(iter(types))) if len(types) == 1 and None not in types else leaf
        for leaf, types in zip(leaves, uses.values(), strict=True)
    ]
    return jax.tree.unflatten(structure, cast)


def stream(
    encoders: Sequence[BatchEncoder], slides: Iterable[tuple[Key, Groups]]
) -> Iterator[tuple[Key, list[dict[str, np.ndarray]] | UserError]]:
    """Features slide by slide, in order, of every encoder, as `BatchEncoder.__call__` gives them.

    Args:
      encoders: of one batch size; every image is read once and goes through all of them.
      slides: whatever names a slide, and its images in groups of any size. They are read in a
        thread, some batches ahead of the device.

    Yields:
      The slide's name and its features, or the mistake that its reading ended with; the slides
      after it go on.
    """
    waiting: collections.deque = collections.deque()
    parts: list[list[dict[str, np.ndarray]]] = []

    def settle() -> Iterator[tuple[Key, list[dict[str, np.ndarray]] | UserError]]:
        outputs, pieces = waiting.popleft()
        host = [{name: np.asarray(value) for name, value in one.items()} for one in outputs]
        at = 0
        for piece in pieces:
            if piece.rows:
                own = slice(at, at + piece.rows)
                parts.append([{k: value[own] for k, value in one.items()} for one in host])
                at += piece.rows
            if piece.is_last:
                of_encoders = [[part[i] for part in parts] for i in range(len(encoders))]
                yield piece.key, piece.error or [_join(own) for own in of_encoders]
                parts.clear()

    for images, pieces in ahead(_packed(slides, encoders[0].batch), _READY):
        waiting.append(([encoder.dispatch(images) for encoder in encoders], pieces))
        if len(waiting) > _IN_FLIGHT:
            yield from settle()
    while waiting:
        yield from settle()


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Rows of a batch that are one slide's, and whether they are its last."""

    key: Any
    rows: int
    is_last: bool = False
    error: UserError | None = None


def _packed(
    slides: Iterable[tuple[Any, Groups]], batch: int
) -> Iterator[tuple[np.ndarray | None, list[_Piece]]]:
    """Whole batches across slides, with whose rows they are; the last one ends in zeros, or is
    None. Every image is copied once, to its place in the batch."""
    images: np.ndarray | None = None
    pieces: list[_Piece] = []
    count = 0
    for key, groups in slides:
        error, first = None, count
        try:
            for image in itertools.chain.from_iterable(groups):
                if images is None:
                    images = np.zeros((batch, *image.shape), np.uint8)
                images[count] = image
                count += 1
                if count == batch:
                    yield images, [*pieces, _Piece(key, count - first)]
                    images, pieces, count, first = None, [], 0, 0
        except UserError as caught:
            error = caught
        pieces.append(_Piece(key, count - first, is_last=True, error=error))
    if pieces:
        yield images, pieces


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The same items, made in a thread that is at most `depth` of them ahead."""
    line: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None, is_end: bool = False) -> bool:
        while not stopped.is_set():
            try:
                line.put((item, error, is_end), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, None, is_end=True)
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = line.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
