"""The loss of the alignment, from what an encoder says: by loops, and masked."""

import jax
import numpy as np
import pytest

from lrmil_jax.data import param_files
from lrmil_jax.distill import cross_scale
from lrmil_jax.encoders import Transform, adapters
from lrmil_jax.encoders.vit import EncoderOutput
from lrmil_jax.selection import shared_space
from lrmil_jax.stages import align

B, RATIO, GRID, WIDTH, BLOCKS = 3, 2, 4, 6, (0, 2)


class _Said:
    """An encoder that says what its parameters hold, whatever the images."""

    def apply(self, variables, images, *, blocks):
        said = variables["params"]
        tokens = {block: said["tokens"][place] for place, block in enumerate(blocks)}
        return EncoderOutput(said["embedding"], {}, tokens)


@pytest.fixture
def space(tmp_path):
    rng = np.random.default_rng(2)
    tree = {
        "embedding": rng.normal(size=(2, WIDTH)).astype(np.float32),
        "sentence_embedding": rng.normal(size=(2, WIDTH)).astype(np.float32),
        "counts": np.ones(2, np.int32),
        "logit_scale": np.float32(7),
    }
    facts = {"classes": ["a", "b"], "sentences": [["a"], ["b"]]}
    param_files.save_params(tmp_path / "texts", tree, facts)
    return shared_space.SharedSpace(tmp_path / "texts")


def _draw():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params = {
        "embedding": draw(B, WIDTH),
        "tokens": draw(len(BLOCKS), B, GRID, GRID, WIDTH),
    }
    mask = rng.random((B, RATIO, RATIO)) < 0.6
    mask[:, 0, 0] = True
    batch = {
        "lr": np.zeros((B, 8, 8, 3), np.uint8),
        "child_embedding": draw(B, RATIO**2, WIDTH),
        "child_cls": draw(B, RATIO, RATIO, len(BLOCKS), WIDTH),
        "child_mask": mask,
    }
    return params, batch, {"scale": np.array([0.5, 2.0], np.float32)}


def _terms(space, params, batch, constants, *, blocks=BLOCKS):
    loss_fn = align.make_loss(_Said(), Transform(px=8), space, blocks, beta=0.5, lambda_layer=3.0)
    learned = {adapters.WHOLE: params}
    return loss_fn(learned, constants, batch, None, True)


def test_windows_learn_of_their_children_beside_the_whole(space):
    params, batch, constants = _draw()
    terms = _terms(space, params, batch, constants)
    side, layer = GRID // RATIO, np.zeros(B)
    for i in range(B):
        for place, scale in enumerate(constants["scale"]):
            squares = [
                np.mean(
                    (
                        params["tokens"][
                            place, i, v * side : (v + 1) * side, u * side : (u + 1) * side
                        ].mean((0, 1))
                        - batch["child_cls"][i, v, u, place]
                    )
                    ** 2
                )
                for v, u in np.argwhere(batch["child_mask"][i])
            ]
            layer[i] += np.mean(squares) / scale / len(BLOCKS)
    np.testing.assert_allclose(terms["layer"], layer, 1e-5)
    target = cross_scale.children_mean(batch["child_embedding"], batch["child_mask"].reshape(B, -1))
    texts = space.texts.embedding
    whole = cross_scale.cross_scale_loss(params["embedding"], target, texts, scale=7.0, beta=0.5)
    np.testing.assert_allclose(terms["loss"], whole["loss"] + 3 * layer, 1e-5)
    plain = _terms(space, params, batch, constants, blocks=())
    assert plain.keys() == {"loss", "cosine", "agreement"}
    np.testing.assert_allclose(plain["loss"], whole["loss"], 1e-6)


def test_absent_children_may_hold_anything(space):
    params, batch, constants = _draw()
    spoiled = dict(batch)
    for name in ("child_embedding", "child_cls"):
        absent = ~batch["child_mask"].reshape(B, -1)
        values = batch[name].reshape(B, RATIO**2, -1).copy()
        values[absent] = np.nan
        spoiled[name] = values.reshape(batch[name].shape)

    def loss(params, batch):
        return _terms(space, params, batch, constants)["loss"].sum()

    value, grads = jax.value_and_grad(loss)(params, spoiled)
    np.testing.assert_allclose(value, loss(params, batch), 1e-6)
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_what_is_learned_of_the_tower():
    kernel = np.ones((4, 4), np.float32)
    tower = {"block_0": {"attn": {"kernel": kernel}}, "norm": {"scale": np.ones(4, np.float32)}}
    up, down = np.zeros((2, 4), np.float32), np.ones((4, 2), np.float32)
    up[0] = 3
    own = {"block_0": {"attn": {"kernel": {"down": down, "up": up}}}}
    constants = {adapters.FROZEN: tower}
    merged = adapters.tower({adapters.ADAPTERS: own}, constants)
    np.testing.assert_array_equal(merged["block_0"]["attn"]["kernel"], kernel + 3)
    assert adapters.tower({align.PROMPTS: np.zeros((1, 1, 4))}, constants) is tower
    assert adapters.tower({adapters.WHOLE: merged}, {}) is merged
