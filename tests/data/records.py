"""Small region and feature shards of known content, for the tests of this folder."""

import imagecodecs
import numpy as np

from lrmil_jax.data import features, schema, writer

GEOMETRY = schema.Geometry(hr_mpp=0.5, lr_mpp=1.0, patch_px=8)


def region(index, *, mask=None, geometry=GEOMETRY, hr=True, slide_id="s"):
    """A region whose LR tile holds its index and whose child (v, u) is grey 20 + 50 v + 100 u."""
    px, r = geometry.patch_px, geometry.ratio
    grey = np.array([[20 + 50 * v + 100 * u for u in range(r)] for v in range(r)], np.uint8)
    mosaic = np.repeat(np.kron(grey, np.ones((px, px), np.uint8))[..., None], 3, 2)
    record = {
        "slide_id": slide_id,
        "index": index,
        "lr": imagecodecs.png_encode(np.full((px, px, 3), index, np.uint8)),
        "lr_xy": np.array([index * 16, 32], np.int32),
        "lr_side": 16,
        "child_mask": np.ones((r, r), bool) if mask is None else np.array(mask, bool),
    }
    return record | ({"hr": imagecodecs.jpeg8_encode(mosaic, level=95)} if hr else {})


def write_regions(path, masks, *, hr=True, slide_id="s"):
    """A shard with one region a mask."""
    kinds = schema.region_features(GEOMETRY, with_hr=hr)
    found = (region(i, mask=mask, hr=hr, slide_id=slide_id) for i, mask in enumerate(masks))
    writer.write_records(path, kinds, found)
    return path


def rows_of(masks, *, width=4, layers=2, seed=0):
    """The features that encoding these regions' children would give, in their order."""
    rng = np.random.default_rng(seed)
    places = [(i, v, u) for i, mask in enumerate(masks) for v, u in np.argwhere(mask)]
    parent, v, u = np.array(places, np.int32).T
    shape = (len(places), layers, width)
    return features.SlideFeatures(
        embedding=rng.normal(size=(len(places), width)).astype(np.float32),
        xy=np.stack([parent * 16 + u * 8, 32 + v * 8], 1).astype(np.int32),
        parent=parent,
        child=(v * 2 + u).astype(np.int32),
        child_mask=np.array(masks, bool)[parent],
        cls=rng.normal(size=shape).astype(np.float32) if layers else None,
    )


def parser(rows, names=None, dtype="float16"):
    """Reads shards of such rows."""
    return schema.RecordParser(features.row_features(rows, dtype), names)
