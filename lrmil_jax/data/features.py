"""Encoded patches of a slide on disk: written whole, read as a bag or region by region."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Bool, Float, Int

from lrmil_jax import files
from lrmil_jax.data import schema, writer
from lrmil_jax.errors import DataError

_SUMMED = 256  # rows summed in f32 before the sum goes to f64


@dataclasses.dataclass
class SlideFeatures:
    """Rows of one slide, one per encoded patch.

    Attributes:
      embedding: [n, D].
      xy: [n, 2] level-0 px of each patch.
      parent: [n] which LR patch of the slide's regions a row belongs to.
      child: [n] its place v * r + u in that patch, -1 for an LR patch.
      child_mask: [n, r, r] the parent's mask.
      cls: [n, L, W] CLS after L blocks, or None.
    """

    embedding: Float[np.ndarray, "n D"]
    xy: Int[np.ndarray, "n 2"]
    parent: Int[np.ndarray, " n"]
    child: Int[np.ndarray, " n"]
    child_mask: Bool[np.ndarray, "n r r"]
    cls: Float[np.ndarray, "n L W"] | None = None

    def cast(self, dtype: str, slide_id: str) -> "SlideFeatures":
        """The same with features as they are stored.

        Raises:
          DataError: a feature does not fit the type.
        """
        target = schema.FEATURE_DTYPES[dtype]

        def convert(values):
            with np.errstate(over="ignore"):
                converted = values.astype(target)
            if not np.isfinite(converted).all():
                raise DataError(
                    f"features of slide {slide_id} do not fit {dtype} (not finite); "
                    "set features.dtype=bfloat16, or check the encoder's weights"
                )
            return converted

        cls = None if self.cls is None else convert(self.cls)
        return dataclasses.replace(self, embedding=convert(self.embedding), cls=cls)

    def take(self, rows: Bool[np.ndarray, " n"] | Int[np.ndarray, " m"]) -> "SlideFeatures":
        """Some of the rows."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return SlideFeatures(**{k: None if v is None else v[rows] for k, v in found.items()})


def join(parts: Sequence[SlideFeatures]) -> SlideFeatures:
    """Rows of distinct LR patches of one slide together, sorted by LR patch."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in dataclasses.fields(SlideFeatures)]
    values = {name: [getattr(part, name) for part in parts] for name in names}
    dtype = np.result_type(*(part.dtype for part in values["embedding"]))
    values["embedding"] = [part.astype(dtype) for part in values["embedding"]]
    joined = {k: None if v[0] is None else np.concatenate(v) for k, v in values.items()}
    return SlideFeatures(**joined).take(np.argsort(joined["parent"], kind="stable"))


def write(path: Path, slide_id: str, rows: SlideFeatures, *, dtype: str, block: int | None) -> None:
    """Writes one slide's features, whole or not at all.

    Args:
      path: the ArrayRecord file.
      slide_id: kept in every record.
      rows: the features, sorted by parent where `block` is None.
      dtype: "float16" or "bfloat16".
      block: rows a record; None makes one record per LR patch, so that a training example of
        stage 1 is one read.
    """
    rows = rows.cast(dtype, slide_id)
    count = len(rows.embedding)
    if block is None:
        edges = np.flatnonzero(np.diff(rows.parent)) + 1
        bounds = [0, *edges.tolist(), count]
    else:
        bounds = [*range(0, count, block), count]
    features = row_features(rows, dtype)
    # The index comes first, so that a record file that is there always has one.
    _write_index(index_path(path), rows, bounds)

    def examples() -> Iterator[dict]:
        for start, stop in itertools.pairwise(bounds):
            names = ("embedding", "xy", "parent", "child", "child_mask")
            names += () if rows.cls is None else ("cls",)
            yield {"slide_id": slide_id} | {name: getattr(rows, name)[start:stop] for name in names}

    writer.write_records(path, features, examples())


def index_path(path: Path) -> Path:
    """Beside a feature file: what training asks of every slide, without reading the features."""
    return path.with_name(path.name.removesuffix(".array_record") + ".index.safetensors")


def _write_index(path: Path, rows: SlideFeatures, bounds: list[int]) -> None:
    index = {
        "parent": rows.parent[bounds[:-1]].astype(np.int64),
        "rows": np.diff(bounds).astype(np.int64),
    }
    for name in ("embedding", "cls"):
        values = getattr(rows, name)
        if values is not None:
            index |= _sums(name, values)
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(index))


def _sums(name: str, values: Float[np.ndarray, "n ..."]) -> dict[str, np.ndarray]:
    """Sums over the rows, of the values and of their squares.

    Summed in f32, block by block and about the block's mean, so that a mean far from 0 costs no
    digits; only the blocks' sums are f64, which would take ten times as long throughout.
    """
    total = squares = np.zeros(values.shape[1:])
    for start in range(0, len(values), _SUMMED):
        block = values[start : start + _SUMMED].astype(np.float32)
        centre = block.mean(0)
        block -= centre
        rest, centre = block.sum(0).astype(np.float64), centre.astype(np.float64)
        total = total + len(block) * centre + rest
        around = np.square(block, out=block).sum(0)
        squares = squares + around + centre * (2 * rest + len(block) * centre)
    return {f"{name}_sum": total, f"{name}_squares": squares}


def read_index(path: Path) -> dict[str, np.ndarray]:
    """The index of a feature file.

    Returns:
      `parent` and `rows` [records]: the first parent and the number of rows of each record; and
      sums over all rows of the features and of their squares: `embedding_sum`,
      `embedding_squares` [D], and with targets `cls_sum`, `cls_squares` [L, W].

    Raises:
      DataError: it is missing or broken.
    """
    try:
        index = safetensors.numpy.load_file(index_path(path))
        _refuse_absurd(path, index["rows"])
        return index
    except KeyError as error:
        raise DataError(f"the index {index_path(path)} has no {error}; {_anew(path)}") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(
            f"the index {index_path(path)} cannot be read ({error}); {_anew(path)}"
        ) from error


def _refuse_absurd(path: Path, rows: Int[np.ndarray, " records"]) -> None:
    """Refuses rows that the file cannot hold, before memory is asked for them: each has bytes."""
    held = path.stat().st_size if path.is_file() else None
    total = sum(map(int, rows))
    if total < 0 or (rows < 0).any() or (held is not None and total > held):
        raise DataError(
            f"the index {index_path(path)} says that there are {total} rows, but {path} has "
            f"{held} bytes; {_anew(path)}"
        )


def _anew(path: Path) -> str:
    return f"delete {path} and run the same command again: only this slide is encoded anew"


def row_features(rows: SlideFeatures, dtype: str):
    """The TFDS features of files like `rows`."""
    layers, layer_width = (0, 0) if rows.cls is None else rows.cls.shape[1:]
    return schema.patch_features(
        width=rows.embedding.shape[1],
        ratio=rows.child_mask.shape[-1],
        dtype=dtype,
        layers=layers,
        layer_width=layer_width,
    )


def write_view(folder: Path, slide_ids: Sequence[str], record) -> None:
    """Lets TFDS open the feature files of `folder`; `record` is what `row_features` gives."""
    paths = [folder / f"{slide_id}.array_record" for slide_id in slide_ids]
    counts = {path: len(read_index(path)["rows"]) for path in paths}
    writer.write_tfds_view(folder, record, counts)


def moments(paths: Sequence[Path], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of `embedding` [D] or `cls` [L, W] over all rows of some files."""
    indices = [read_index(path) for path in paths]
    count = sum(int(index["rows"].sum()) for index in indices)
    mean = sum(index[f"{name}_sum"] for index in indices) / count
    squares = sum(index[f"{name}_squares"] for index in indices) / count
    return mean, np.maximum(squares - np.square(mean), 0.0)


def target_variance(paths: Sequence[Path]) -> Float[np.ndarray, " L"]:
    """Variance of each block's `cls` over all rows of some files, the mean over its dimensions."""
    _, variance = moments(paths, "cls")
    return np.maximum(variance.mean(-1), 1e-12).astype(np.float32)


def _read_rows(path: Path, parser: schema.RecordParser) -> dict[str, np.ndarray]:
    from lrmil_jax.data import source  # late: Grain brings JAX, for which no worker is to wait

    return source.read_rows(path, parser)


class FeatureStore:
    """The bags of some slides: their sizes now, their rows when asked for.

    Attributes:
      slide_ids: in order.
      sizes: [S] patches per slide.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        slide_ids: Sequence[str],
        parser: Callable[[tuple[str, ...]], schema.RecordParser],
    ):
        self.slide_ids = list(slide_ids)
        self._paths = list(paths)
        self._embedding = parser(("embedding",))
        self._places = parser(("xy", "parent", "child"))
        self._rows = parser(("embedding", "xy", "parent", "child", "child_mask"))
        self.sizes = np.array([read_index(path)["rows"].sum() for path in self._paths], np.int64)

    def path(self, slide: int) -> Path:
        """The file of the slide at this place in the order."""
        return self._paths[slide]

    def embedding(self, slide: int) -> Float[np.ndarray, "n D"]:
        """Features of the slide at this place in the order, as stored."""
        return _read_rows(self._paths[slide], self._embedding)["embedding"]

    def places(self, slide: int) -> dict[str, np.ndarray]:
        """xy, parent and child of the rows."""
        return _read_rows(self._paths[slide], self._places)

    def rows(self, slide: int) -> SlideFeatures:
        """All that is stored of the slide, as `write` takes it."""
        return SlideFeatures(**_read_rows(self._paths[slide], self._rows))

    def statistics(self, slides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and SD [D] of all patches of some slides."""
        mean, variance = moments([self._paths[slide] for slide in slides], "embedding")
        # A constant feature would otherwise be divided by 0.
        return mean.astype(np.float32), np.sqrt(variance + 1e-6).astype(np.float32)
