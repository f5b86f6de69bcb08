"""Operations of an encoder, against the sum by hand."""

import pytest

from lrmil_jax.data.schema import Geometry
from lrmil_jax.models import cost


def test_operations_of_a_small_transformer():
    geometry = Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=64)
    flops = cost.flops_per_patch("vit-tiny", {}, geometry)
    tokens, width, depth, patch = 8**2 + 1, 64, 3, 8
    dense = 4 * width**2 + 2 * width * 4 * width  # attention's four products, and the MLP's two
    block = 2 * tokens * dense + 4 * tokens**2 * width
    by_hand = depth * block + 2 * 8**2 * 3 * patch**2 * width
    assert flops["hr"] == pytest.approx(by_hand, rel=0.2)  # softmax, norms and GELU come on top
    assert flops["hr"] > by_hand
    assert flops["lr"] == flops["hr"]  # both read 64 px
