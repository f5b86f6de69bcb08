"""Scores by windows of a patch: the encoder's columns, by hand, and what they choose."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from lrmil_jax import config as configuration
from lrmil_jax import encoders
from lrmil_jax.data import param_files
from lrmil_jax.encoders import Transform, prompts
from lrmil_jax.errors import ConfigError
from lrmil_jax.models import text_guidance
from lrmil_jax.selection import score, shared_space, windows
from lrmil_jax.train.encode import Encoder

WIDTH, SHARED, RATIO = 12, 5, 2
CLASSES = ("a", "b", "c")


def _space(folder, *, projected=True):
    rng = np.random.default_rng(3)
    width = SHARED if projected else WIDTH
    tree = {
        "embedding": 3 * rng.normal(size=(len(CLASSES), width)).astype(np.float32),
        "sentence_embedding": rng.normal(size=(len(CLASSES), width)).astype(np.float32),
        "counts": np.ones(len(CLASSES), np.int32),
        "logit_scale": np.float32(10),
    }
    if projected:
        tree["projection"] = rng.normal(size=(WIDTH, SHARED)).astype(np.float32)
    sentences = [[name] for name in CLASSES]
    param_files.save_params(
        folder / "texts", tree, {"classes": list(CLASSES), "sentences": sentences}
    )
    return shared_space.SharedSpace(folder / "texts")


def _encoder(*, prompted):
    options = {"px": 16, "patch": 4, "width": WIDTH, "depth": 1, "heads": 2}
    module = encoders.create("vit", **options)
    if prompted:
        module = prompts.Prompted(module, 2)
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    params = module.init(jax.random.key(0), images)["params"]
    transform = Transform(px=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    return Encoder("vit", options, module, params, transform, "0" * 64), images


@pytest.mark.parametrize("projected", [True, False])
@pytest.mark.parametrize("prompted", [True, False])
def test_the_encoder_adds_cosines_of_windows(tmp_path, projected, prompted):
    space, (encoder, images) = _space(tmp_path, projected=projected), _encoder(prompted=prompted)
    config = configuration.default()
    config.select.score = "window"
    scoring = text_guidance.scoring_encoder(config, space, encoder, ratio=RATIO)
    rows = np.asarray(scoring.module.apply({"params": scoring.params}, images).embedding)
    plain = encoder.module.apply({"params": encoder.params}, images, windows=RATIO)
    own = text_guidance.embeddings(config, space, rows, RATIO)
    np.testing.assert_allclose(own, plain.embedding, 1e-5, 1e-6)
    parts = np.asarray(plain.windows).reshape(-1, WIDTH)
    cosines = score.class_scores(np.asarray(space.project(parts)), space.texts.embedding)
    np.testing.assert_allclose(rows[:, WIDTH:], cosines.reshape(3, -1), 1e-4, 1e-5)

    mask = np.ones((3, RATIO, RATIO), bool)
    mask[1, 0, 1] = False
    config.select.update(windows=1, count=1, classes=("b",))
    scores, chosen = text_guidance.choose(config, space, rows, mask, "slide")
    present = np.where(mask.reshape(3, -1), cosines.reshape(3, -1, 3)[..., 1], -2)
    np.testing.assert_allclose(scores[:, 1], present.max(1), 1e-4, 1e-5)
    assert chosen.tolist() == [present.max(1).argmax()]


def test_a_patch_as_a_whole_is_scored_as_before(tmp_path):
    space, (encoder, _) = _space(tmp_path), _encoder(prompted=False)
    config = configuration.default()
    config.select.score = "patch"
    assert text_guidance.scoring_encoder(config, space, encoder, ratio=RATIO) is encoder
    rows = np.random.default_rng(1).normal(size=(4, WIDTH)).astype(np.float32)
    mask = np.ones((4, RATIO, RATIO), bool)
    scores, _ = text_guidance.choose(config, space, rows, mask, "slide")
    expected = score.class_scores(np.asarray(space.project(rows)), space.texts.embedding)
    np.testing.assert_array_equal(scores, expected)


def test_the_best_windows_by_hand():
    cosines = np.array([[[0.1], [0.9], [0.5], [0.3]], [[0.8], [0.2], [-0.4], [0.0]]], np.float32)
    mask = np.array([[True, True, True, True], [False, True, True, False]])
    for best, expected in ((1, [0.9, 0.2]), (2, [0.7, -0.1]), (3, [1.7 / 3, -0.1])):
        scores = score.of_windows(cosines, mask, best=best)
        np.testing.assert_allclose(scores[:, 0], expected, 1e-6)
    assert scores.dtype == np.float32
    with pytest.raises(ConfigError, match="best, are 0: give at least 1"):
        score.of_windows(cosines, mask, best=0)


def test_windows_without_a_child_may_hold_anything():
    rng = np.random.default_rng(0)
    cosines, mask = rng.uniform(-1, 1, (5, 4, 2)), rng.random((5, 4)) < 0.5
    mask[0], mask[1] = True, False
    expected = score.of_windows(cosines, mask, best=2)
    spoiled = np.where(mask[..., None], cosines, np.nan)
    np.testing.assert_array_equal(score.of_windows(spoiled, mask, best=2), expected)
    assert (expected[1] == -1).all()


def test_other_encoders_are_refused():
    with pytest.raises(ConfigError, match=r"this one is a Dense: set select\.score to patch"):
        windows.Compared(nn.Dense(3), 2)
