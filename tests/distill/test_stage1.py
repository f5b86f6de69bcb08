"""An LR encoder of another shape than its teacher: which blocks answer, and through which maps."""

import jax
import numpy as np
import pytest

from lrmil_jax import encoders
from lrmil_jax.distill import stage1


@pytest.mark.parametrize(
    ("blocks", "depth", "teacher_depth", "expected"),
    [
        ((0, 1, 10), 12, 12, (0, 1, 10)),  # of the same depth each answers for itself
        ((0, 1, 10), 6, 12, (0, 0, 5)),  # half as deep
        ((0, 1, 10), 3, 12, (0, 0, 2)),
        ((0, 2), 6, 3, (1, 5)),  # a deeper one
    ],
)
def test_blocks_answer_those_as_deep_as_they(blocks, depth, teacher_depth, expected):
    assert stage1.answering(blocks, depth=depth, teacher_depth=teacher_depth) == expected


def test_the_loss_sees_what_the_maps_make_of_a_student():
    """With maps of a student's own that only widen by zeros, a teacher of the same first half and
    zeros behind it is met exactly, and any other map is not."""
    module = encoders.create("vit", px=16, patch=8, width=8, depth=1, heads=2)
    transform = encoders.transform("vit", px=16)
    images = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    params = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"]
    output = module.apply({"params": params}, transform.normalise(images), blocks=(0,))
    widened = np.pad(np.asarray(output.tokens[0]), ((0, 0), (0, 0), (0, 0), (0, 4)))
    children = np.pad(np.asarray(output.embedding), ((0, 0), (0, 4)))[:, None].repeat(4, 1)
    batch = {
        "lr": images,
        "child_cls": widened[:, :, :, None],
        "child_embedding": children,
        "child_mask": np.ones((2, 2, 2), bool),
        "attention": np.zeros((2, 4), np.float32),
    }
    maps = {"layers": np.eye(8, 12, dtype=np.float32)[None], "embedding": np.eye(8, 12)}
    options = {"lambda_layer": 1.0, "lambda_attn": 1.0, "projected": True}
    loss_fn = stage1.make_loss(module, transform, (0,), **options)

    def loss(maps):
        learned = {"encoder": params, "projections": maps}
        terms = loss_fn(learned, {"scale": np.ones(1, np.float32)}, batch, None, True)
        return {name: float(value.max()) for name, value in terms.items()}

    assert loss(maps) == pytest.approx({"loss": 0, "layer": 0, "attn": 0}, abs=1e-8)
    other = stage1.projections(module, encoders.create("vit", width=12, heads=2), layers=1, seed=0)
    assert other["layers"].shape == (1, 8, 12)
    assert other["embedding"].shape == (8, 12)
    assert min(loss(other).values()) > 0.1
