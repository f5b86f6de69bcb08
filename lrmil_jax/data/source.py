"""Reading the shards: random access for Grain, decode in its threads, whole-slide features."""

import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import imagecodecs
import numpy as np
from jaxtyping import Int, UInt8

from lrmil_jax.data.regions import cut_mosaic
from lrmil_jax.data.schema import RecordParser
from lrmil_jax.errors import ConfigError, DataError


def raise_file_limit() -> None:
    """Lets this process hold as many shards open as it may: ArrayRecord keeps one open a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class RecordSource:
    """Records of several ArrayRecord files as one sequence, in the order of the files.

    Raises:
      DataError: a file is missing, truncated or no ArrayRecord, named in the message.
    """

    def __init__(self, paths: Sequence[Path], parser: RecordParser):
        raise_file_limit()
        self._paths = list(paths)
        self._parser = parser
        for path in self._paths:
            if not path.is_file() or path.stat().st_size == 0:
                raise DataError(_broken(path, "it is missing or empty"))
        try:
            self._records = grain.sources.ArrayRecordDataSource([str(path) for path in paths])
            self._length = len(self._records)
        except (RuntimeError, ValueError) as error:
            raise self._error(str(error)) from error

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray | bytes]:
        try:
            return self._parser(self._records[index])
        except (RuntimeError, ValueError, KeyError) as error:
            raise self._error(str(error)) from error

    def _error(self, reason: str) -> DataError:
        """The sentence for an unreadable file; finding out which one reads them all again."""
        if "too many open files" in reason.lower():
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            return DataError(
                f"more than {limit} files would be open at once, one for every slide; raise the "
                "limit (ulimit -n) and run the same command again"
            )
        broken = next((path for path in self._paths if not self._is_whole(path)), self._paths[0])
        return DataError(_broken(broken, reason))

    def _is_whole(self, path: Path) -> bool:
        try:
            records = grain.sources.ArrayRecordDataSource([str(path)])
            for index in range(len(records)):
                self._parser(records[index])
        except (RuntimeError, ValueError, KeyError):
            return False
        return True


def _broken(path: Path, reason: str) -> str:
    reason = reason.strip().splitlines()[0][:200] if reason.strip() else "unreadable"
    return (
        f"the shard {path} cannot be read ({reason}); delete it and run the same command again: "
        "only this slide is made anew"
    )


def read_rows(path: Path, parser: RecordParser) -> dict[str, np.ndarray]:
    """All blocks of one slide's feature file, joined along the rows."""
    source = RecordSource([path], parser)
    blocks = [source[index] for index in range(len(source))]
    names = [name for name, value in blocks[0].items() if isinstance(value, np.ndarray)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in names}


def decode_lr(record: dict) -> UInt8[np.ndarray, "px px 3"]:
    """The LR tile of a region record."""
    return imagecodecs.png_decode(record["lr"])


def decode_hr(record: dict, ratio: int) -> UInt8[np.ndarray, "r r px px 3"]:
    """The HR mosaic of a region record, cut into its children [row, column]."""
    return cut_mosaic(imagecodecs.jpeg8_decode(record["hr"]), ratio)


def stream(source, transform, *, threads: int = 4, buffer: int = 64) -> Iterator:
    """Items of `source` in order, each through `transform` in Grain's threads (decode, crop).

    Args:
      source: random access, such as a `RecordSource`.
      transform: a function of one item; it must release the GIL to gain from the threads.
      threads: how many items are decoded at once.
      buffer: how many decoded items may wait; this bounds host memory.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(grain.MapDataset.source(source).map(transform).to_iter_dataset(options))


def training_batches(
    source,
    *,
    batch: int,
    seed: int,
    steps: int,
    threads: int,
    augment: grain.transforms.RandomMap | None = None,
    part: tuple[int, int] = (0, 1),
) -> grain.IterDataset:
    """Shuffled batches of single examples, over as many epochs as `steps` batches need.

    Args:
      source: random access; its decoding runs in Grain's threads.
      batch: examples per batch.
      seed: of the order and of `augment`; epochs differ.
      steps: batches that will be asked for, at most.
      threads: how many examples are made at once.
      augment: a random change of each example, the same for the same seed.
      part: (index, count): this process's part of every batch; only that is read.
    """
    index, count = part
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(4, threads))
    epochs = -(-steps * batch // len(source)) + 1
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat(epochs)
    if augment is not None:
        examples = examples.random_map(augment)
    # Batched before it is parted: the place in the order is a number of batches, whoever counts.
    parts = examples.batch(share(batch, count), drop_remainder=True)[index::count]
    return parts.to_iter_dataset(options)


def share(batch: int, processes: int) -> int:
    """Examples of a batch that are each process's.

    Raises:
      ConfigError: the batch cannot be parted.
    """
    if batch % processes:
        raise ConfigError(
            f"batches of {batch} examples cannot be parted evenly among {processes} processes: "
            f"set the `batch` of this training to a multiple of {processes}"
        )
    return batch // processes


def held_out_batches(
    source,
    indices: Sequence[int] | Int[np.ndarray, " n"],
    *,
    batch: int,
    part: tuple[int, int] = (0, 1),
) -> list[dict[str, np.ndarray]]:
    """The named examples in order, in batches of one shape; the last one's filling weighs 0.

    Args:
      source: random access.
      indices: of the examples.
      batch: examples per batch.
      part: see `training_batches`.
    """
    batches, own = [], share(batch, part[1])
    for start in range(0, len(indices), batch):
        first = start + part[0] * own
        items = [source[int(index)] for index in indices[first : first + own]]
        filling = own - len(items)
        example = items[0] if items else source[int(indices[0])]
        stacked = {
            name: np.stack([item[name] for item in items] + [example[name]] * filling)
            for name in example
        }
        weight = np.array([1.0] * len(items) + [0.0] * filling, np.float32)
        batches.append(stacked | {"weight": weight})
    return batches
