"""The text tower: tokens of any sentence, the transformer against PyTorch, and its file."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from lrmil_jax.encoders import TextTower, TextTransformer, Tokenizer, pretrained
from lrmil_jax.errors import ConfigError, DataError, WeightsError

# Test folders are no packages, so the reference is loaded by its path.
_spec = importlib.util.spec_from_file_location(
    "encoder_reference", Path(__file__).with_name("reference.py")
)
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

CAPTIONS = [
    "Fibrous stroma with wavy collagen.",
    "A dense infiltrate of small round lymphocytes.",
    "Malignant epithelium with one prominent nucleolus.",
    "Benign epithelium with uniform nuclei.",
]
SIZES = {"tokens": 40, "width": 16, "depth": 2, "heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, vocabulary=300)


@pytest.fixture(scope="module")
def tower(tokenizer):
    sizes = {**SIZES, "vocabulary": tokenizer.size}
    keys = jax.random.split(jax.random.key(0), 3)
    params = TextTransformer(**sizes).init(keys[0], *tokenizer.encode(CAPTIONS[:1], limit=40))
    return TextTower(
        sizes=sizes,
        tokenizer=tokenizer,
        params={
            "text": params["params"],
            "text_projection": {"kernel": jax.random.normal(keys[1], (16, 8))},
            "image_projection": {"kernel": jax.random.normal(keys[2], (12, 8))},
            "log_scale": np.array(2.5, np.float32),
        },
        encoder_hash="a" * 64,
        facts={"licence": "CC0"},
    )


def test_tokenizer_depends_on_the_captions_alone(tokenizer):
    assert tokenizer.size == 300
    again = Tokenizer.train([*CAPTIONS[::-1], CAPTIONS[0]], vocabulary=300)
    assert again.to_json() == tokenizer.to_json()
    other = Tokenizer.train(CAPTIONS[:2], vocabulary=300)
    assert other.to_json() != tokenizer.to_json()
    stored = Tokenizer(tokenizer.to_json())
    for one, two in zip(
        stored.encode(CAPTIONS, limit=64), tokenizer.encode(CAPTIONS, limit=64), strict=True
    ):
        np.testing.assert_array_equal(one, two)


def test_learned_words_are_few_tokens(tokenizer):
    """Byte pairs: what the captions say is shorter than its bytes, the unknown is not lost."""
    tokens, mask = tokenizer.encode(["epithelium with", "Kernkörperchen 核 \N{BRAIN}"], limit=64)
    assert mask.sum(1).tolist()[0] < 8
    assert mask[1].sum() > 15
    assert (tokens[~mask] == 0).all()
    assert tokens.max() < tokenizer.size


def test_case_and_outer_space_make_no_difference(tokenizer):
    for one, two in zip(
        tokenizer.encode(["  MALIGNANT Epithelium "], limit=64),
        tokenizer.encode(["malignant epithelium"], limit=64),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_sentences_that_cannot_be_read_are_told(tokenizer):
    with pytest.raises(DataError, match="a caption is empty"):
        tokenizer.encode(["stroma", " "], limit=64)
    with pytest.raises(DataError, match=r"'wavy wavy.* more than the 4 .*pretrain\.text_tokens"):
        tokenizer.encode(["wavy " * 9], limit=4)
    with pytest.raises(ConfigError, match=r"vocabulary of 100.*257 or more"):
        Tokenizer.train(CAPTIONS, vocabulary=100)


def test_transformer_agrees_with_plain_numpy(tower):
    tokens, mask = tower.tokenizer.encode(CAPTIONS, limit=40)
    found = TextTransformer(**tower.sizes).apply({"params": tower.params["text"]}, tokens, mask)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tower.params["text"])
    sizes = {"heads": SIZES["heads"], "depth": SIZES["depth"]}
    expected = [
        reference.text(params, row[real], **sizes) for row, real in zip(tokens, mask, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_filling_makes_no_difference(tower):
    module, variables = TextTransformer(**tower.sizes), {"params": tower.params["text"]}
    tokens, mask = tower.tokenizer.encode(CAPTIONS, limit=40)
    wide = np.where(np.pad(mask, ((0, 0), (0, 3))), np.pad(tokens, ((0, 0), (0, 3))), 17)
    np.testing.assert_allclose(
        module.apply(variables, wide, np.pad(mask, ((0, 0), (0, 3)))),
        module.apply(variables, tokens, mask),
        rtol=1e-5,
        atol=1e-6,
    )


def test_sizes_that_cannot_be():
    with pytest.raises(ConfigError, match="16 cannot be shared out among 3 heads"):
        TextTransformer(vocabulary=300, width=16, heads=3)
    module = TextTransformer(vocabulary=300, tokens=4)
    with pytest.raises(ConfigError, match="5 tokens are more than 4"):
        module.init(jax.random.key(0), np.zeros((1, 5), np.int32), np.ones((1, 5), bool))


def test_sentences_in_the_shared_space(tower):
    """Of length 1, one by one as all together, more than one batch of them too."""
    found = tower.embed(CAPTIONS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    many = tower.embed(CAPTIONS * 17)
    assert many.shape == (68, 8)
    np.testing.assert_allclose(many, np.tile(found, (17, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(tower.embed(CAPTIONS[2:3]), found[2:3], rtol=1e-4, atol=1e-6)
    assert (found @ found.T)[~np.eye(4, dtype=bool)].max() < 0.999  # four sentences, four places
    assert tower.embed([]).shape == (0, 8)
    with pytest.raises(DataError, match="more than the 40"):
        tower.embed(["nucleolus! " * 30])


def test_images_in_the_shared_space(tower):
    images = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    expected = images @ np.asarray(tower.params["image_projection"]["kernel"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(tower.project(images), expected, rtol=1e-4, atol=1e-6)
    half = tower.project(images.astype(np.float16))  # features are stored so
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, expected, atol=2e-3)
    assert tower.logit_scale == pytest.approx(np.exp(2.5))


def test_round_trip(tower, tmp_path):
    path = tmp_path / "text.safetensors"
    tower.save(path)
    found = TextTower.load(path, encoder_hash="a" * 64)
    np.testing.assert_array_equal(found.embed(CAPTIONS), tower.embed(CAPTIONS))
    assert found.facts == tower.facts
    assert found.logit_scale == tower.logit_scale
    found.save(tmp_path / "again.safetensors")
    first, second = (pretrained.weights_hash(one) for one in (path, tmp_path / "again.safetensors"))
    assert first == second


def test_sixteen_bit_files_load_as_f32(tower, tmp_path):
    half = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), tower.params)
    dataclasses.replace(tower, params=half).save(tmp_path / "half.safetensors")
    found = TextTower.load(tmp_path / "half.safetensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(found.embed(CAPTIONS), tower.embed(CAPTIONS), atol=5e-3)


def test_another_image_tower_or_another_file_is_refused(tower, tmp_path):
    path = tmp_path / "text.safetensors"
    tower.save(path)
    with pytest.raises(WeightsError, match=r"image tower aaaaaaaaaaaa, not to bbbb.*beside it"):
        TextTower.load(path, encoder_hash="b" * 64)
    pretrained.write_tensors(path, {"x": np.zeros(2)}, {"format": pretrained.FORMAT})
    with pytest.raises(WeightsError, match="is no text tower"):
        TextTower.load(path)
    with pytest.raises(WeightsError, match="No such file"):
        TextTower.load(tmp_path / "nothing.safetensors")
