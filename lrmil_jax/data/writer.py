"""ArrayRecord shards and tables, whole or not there, and the TFDS view of a folder of shards."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

from lrmil_jax.errors import WorkdirError
from lrmil_jax.files import atomic_path, disk_errors

# One record a group: records are read one by one, and features hardly compress (measured).
_RECORD_OPTIONS = "group_size:1,uncompressed"


def write_records(
    path: Path,
    features: tfds.features.FeaturesDict,
    examples: Iterable[Mapping[str, Any]],
) -> int:
    """Writes one ArrayRecord file under a temporary name and renames it when it is whole.

    Args:
      path: the file to be.
      features: the TFDS features that serialise an example; images are given as encoded bytes.
      examples: consumed one by one, so memory does not grow with the slide.

    Returns:
      The number of records.
    """
    count = 0
    with record_writer(path, features) as write:
        for example in examples:
            write(example)
            count += 1
    return count


@contextlib.contextmanager
def record_writer(
    path: Path, features: tfds.features.FeaturesDict
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """`write_records` for examples that come one at a time: what is given writes one."""
    with atomic_path(path) as temporary:
        serialise = _serialiser(features)
        writer = array_record_module.ArrayRecordWriter(str(temporary), _RECORD_OPTIONS)
        try:
            yield lambda example: writer.write(serialise(example))
        finally:
            _close(writer, path)


def _serialiser(features: tfds.features.FeaturesDict) -> Callable[[Mapping[str, Any]], bytes]:
    """Examples as TFDS serialises them, fields in the order of their names: left to itself, every
    process has an order of its own, and the same slide gives other bytes."""
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())

    def serialise(example: Mapping[str, Any]) -> bytes:
        proto = serializer.get_tf_example(features.encode_example(dict(example)))
        return proto.SerializeToString(deterministic=True)

    return serialise


def _close(writer, path: Path) -> None:
    # ArrayRecord reports a full disk as a RuntimeError, most often only when it is closed.
    try:
        writer.close()
    except RuntimeError as error:
        raise WorkdirError(
            f"{path} could not be written ({error}); free some space and run the same command again"
        ) from error


def write_tfds_view(
    folder: Path, features: tfds.features.FeaturesDict, counts: Mapping[Path, int]
) -> Path:
    """Makes `folder/tfds`, which `tfds.builder_from_directory(...)` opens without TensorFlow.

    The view is a folder of relative links, because TFDS takes no dots in file names and slide ids
    have them; its one split is called `slides`.

    Args:
      folder: where the ArrayRecord files lie.
      features: what a record holds.
      counts: records per file.
    """
    view, fresh = folder / "tfds", folder / ".tfds.tmp"
    with disk_errors(folder):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _fill_view(fresh, folder, features, counts)
        # Swapped as a whole, so that a kill never leaves half a view; the same one is left alone.
        if _content(fresh) == _content(view):
            shutil.rmtree(fresh)
        else:
            shutil.rmtree(view, ignore_errors=True)
            fresh.rename(view)
    return view


def remove_tfds_view(folder: Path) -> None:
    """Takes away the view of records that are no longer there."""
    shutil.rmtree(folder / "tfds", ignore_errors=True)


def _content(view: Path) -> dict[str, str | None]:
    """Links and descriptions; None of a file that a copy has in a link's place."""
    paths = view.iterdir() if view.is_dir() else ()
    files = {p.name: p.read_text() if p.suffix == ".json" else None for p in paths}
    return files | {p.name: os.readlink(p) for p in view.glob("*") if p.is_symlink()}


def _fill_view(
    view: Path, folder: Path, features: tfds.features.FeaturesDict, counts: Mapping[Path, int]
) -> None:
    files = sorted(counts)
    template = tfds.core.ShardedFileTemplate(
        data_dir=view, dataset_name=folder.name, split="slides", filetype_suffix="array_record"
    )
    for number, file in enumerate(files):
        link = view / f"{folder.name}-slides.array_record-{number:05d}-of-{len(files):05d}"
        link.symlink_to(os.path.relpath(file, view))
    split = tfds.core.SplitInfo(
        name="slides",
        shard_lengths=[counts[file] for file in files],
        num_bytes=sum(file.stat().st_size for file in files),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=view, features=features, split_infos=[split], version="1.0.0", check_data=False
    )
