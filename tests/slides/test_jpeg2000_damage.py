"""JPEG 2000 streams of many encoders' settings are whole; torn ones are told."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from lrmil_jax.slides import jpeg2000_damage
from tests.slides.corpus import sources

_GLASS = np.full((128, 128, 3), 255, np.uint8)
_SPECK = _GLASS.copy()
_SPECK[10:14, 10:14] = 0
_NOISE = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
_IMAGES = {"glass": _GLASS, "speck": _SPECK, "noise": _NOISE, "waves": sources.coarse()}
_LAYERS = [1000, 500, 100, 50, 20, 10, 5, 3, 2, 1]  # of falling compression


def encode(pixels, **settings):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "jpeg2000", **settings)
    return out.getvalue()


@pytest.mark.parametrize("name", _IMAGES)
def test_whole_streams_pass(name):
    for irreversible, layers, side, boxes, order in itertools.product(
        (False, True), (False, True), (None, (64, 64)), (False, True), ("LRCP", "RPCL")
    ):
        settings = {"irreversible": irreversible, "no_jp2": not boxes, "progression": order}
        settings |= {"quality_layers": _LAYERS, "quality_mode": "rates"} if layers else {}
        settings |= {"tile_size": side, "precinct_size": side} if side else {}
        jpeg2000_damage.check(encode(_IMAGES[name], **settings))


@pytest.mark.parametrize(
    ("tear", "reason"),
    [
        (lambda d: d[:3000] + bytes(3000) + d[6000:], "zeros"),
        (lambda d: d[:3000] + _NOISE.tobytes()[:3000] + d[6000:], "impossible marker"),
        (lambda d: d[: len(d) // 2], "cut short"),
        (lambda d: d[:20], "cut short"),
        (lambda d: b"\xff\xd8\xff\xe0" + d[4:], "no JPEG 2000"),
        (lambda d: d[:60], "cut short|impossible"),
    ],
)
def test_torn_streams_do_not(tear, reason):
    data = encode(sources.image(), no_jp2=True, irreversible=False)
    with pytest.raises(ValueError, match=reason):
        jpeg2000_damage.check(tear(data))
