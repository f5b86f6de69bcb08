"""What a record on disk holds, in TFDS features: readable with and without this package.

Everything is serialised by TFDS and none of it needs TensorFlow. Two kinds of files:

* regions: one record per LR patch with its tile, lossless, and, in a file beside it, one with the
  mosaic of its HR children as one JPEG: a reader of LR never touches the bytes of HR,
* features: blocks of rows, one row per encoded patch, with where it lies and what it belongs to.
"""

import dataclasses
import struct

import ml_dtypes
import numpy as np
import tensorflow_datasets as tfds

from lrmil_jax.slides import jpeg_damage

SCHEMA_VERSION = 2

FEATURE_DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Resolutions in um/px and the patch side in px, the same at both resolutions."""

    hr_mpp: float
    lr_mpp: float
    patch_px: int

    @property
    def ratio(self) -> int:
        """HR patches along one side of an LR patch (r in the paper)."""
        return round(self.lr_mpp / self.hr_mpp)


def _tensor(shape: tuple[int | None, ...], dtype) -> tfds.features.Tensor:
    # 'bytes' serialises at memory speed; the default encoding walks the values one by one.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


def region_features(geometry: Geometry) -> tfds.features.FeaturesDict:
    """One LR patch: tile [px, px, 3], child mask [r, r], level-0 xy and side."""
    px = geometry.patch_px
    tile = tfds.features.Image(shape=(px, px, 3), encoding_format="png")
    return tfds.features.FeaturesDict(_place(geometry) | {"lr": tile})


def mosaic_features(geometry: Geometry) -> tfds.features.FeaturesDict:
    """The HR children of one LR patch: mosaic [r*px, r*px, 3], and where they lie, as there."""
    side = geometry.patch_px * geometry.ratio
    mosaic = tfds.features.Image(shape=(side, side, 3), encoding_format="jpeg")
    return tfds.features.FeaturesDict(_place(geometry) | {"hr": mosaic})


def _place(geometry: Geometry) -> dict[str, tfds.features.FeatureConnector]:
    return {
        "slide_id": tfds.features.Text(),
        "index": tfds.features.Scalar(np.int32),
        "lr_xy": _tensor((2,), np.int32),
        "lr_side": tfds.features.Scalar(np.int32),
        "child_mask": _tensor((geometry.ratio, geometry.ratio), np.bool_),
    }


def patch_features(
    *, width: int, ratio: int, dtype: str, layers: int = 0, layer_width: int = 0
) -> tfds.features.FeaturesDict:
    """A block of n encoded patches of one slide.

    `parent` is the index of the LR patch that a row belongs to, `child` its place v * r + u in
    that patch (-1 for a row that is an LR patch itself), `child_mask` the parent's mask.
    """
    value = FEATURE_DTYPES[dtype]
    features = {
        "slide_id": tfds.features.Text(),
        "embedding": _tensor((None, width), value),
        "xy": _tensor((None, 2), np.int32),
        "parent": _tensor((None,), np.int32),
        "child": _tensor((None,), np.int32),
        "child_mask": _tensor((None, ratio, ratio), np.bool_),
    }
    if layers:
        features["cls"] = _tensor((None, layers, layer_width), value)
    return tfds.features.FeaturesDict(features)


class RecordParser:
    """Reads records of one kind; images stay encoded bytes, unnamed features are not touched."""

    def __init__(self, features: tfds.features.FeaturesDict, names: tuple[str, ...] | None = None):
        kept = tuple(features) if names is None else names
        self._features = tfds.features.FeaturesDict({name: features[name] for name in kept})
        images = [name for name in kept if isinstance(features[name], tfds.features.Image)]
        self._decoders = {name: tfds.decode.SkipDecoding() for name in images}
        self._sizes = {name: features[name].shape[1::-1] for name in images}

    def __call__(self, record: bytes) -> dict[str, np.ndarray | bytes]:
        """The record's values.

        Raises:
          ValueError: an image states another size than it should have, for which a decoder would
            ask for memory.
        """
        values = self._features.deserialize_example_np(record, decoders=self._decoders)
        for name, size in self._sizes.items():
            if (stated := _image_size(values[name])) != size:
                raise ValueError(
                    f"an image of {stated[0]} x {stated[1]} px, not {size[0]} x {size[1]}"
                )
        return values


def _image_size(data: bytes) -> tuple[int, int]:
    """(width, height) that a PNG or JPEG states."""
    if data.startswith(b"\x89PNG"):
        return struct.unpack(">II", data[16:24])
    return jpeg_damage.frame_size(data)
