"""A frozen encoder over images in fixed batches: features belong to their image alone."""

import dataclasses
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrmil_jax import encoders
from lrmil_jax.errors import SlideError
from lrmil_jax.train import make_mesh
from lrmil_jax.train.encode import BatchEncoder, Encoder, cast_ahead

PX = 32


@pytest.fixture(scope="module")
def encoder():
    options = {"px": PX}
    module = encoders.create("vit-tiny", **options)
    params = module.init(jax.random.key(0), jnp.zeros((1, PX, PX, 3)))["params"]
    # Larger weights than at the start, so that images differ visibly in their features.
    params = jax.tree.map(lambda leaf: np.asarray(leaf) * 1.7, params)
    return Encoder(
        "vit-tiny", options, module, params, encoders.transform("vit-tiny", **options), "hash"
    )


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (13, PX, PX, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def encode(encoder):
    return BatchEncoder(encoder, batch=4, blocks=(0, 2))


def test_features_are_the_modules_own(encoder, images, encode):
    said = encode([images])
    normalised = encoder.transform.normalise(images)
    expected = jax.jit(lambda x: encoder.module.apply({"params": encoder.params}, x, blocks=(0, 2)))
    expected = expected(normalised)
    assert said["embedding"].dtype == said["cls"].dtype == np.float32
    np.testing.assert_allclose(said["embedding"], expected.embedding, rtol=1e-4, atol=1e-4)
    assert said["cls"].shape == (13, 2, 64)
    for place, block in enumerate((0, 2)):
        np.testing.assert_allclose(said["cls"][:, place], expected.cls[block], rtol=1e-4, atol=1e-4)
    spread = said["embedding"].std(0).mean()
    assert spread > 0.01  # far above the tolerance: images are told apart


def test_what_else_is_in_the_batch_does_not_matter(images, encode):
    whole = encode([images])
    alone = [encode([images[i : i + 1]]) for i in (0, 5, 12)]
    for i, one in zip((0, 5, 12), alone, strict=True):
        np.testing.assert_array_equal(one["embedding"][0], whole["embedding"][i])
        np.testing.assert_array_equal(one["cls"][0], whole["cls"][i])
    order = np.random.default_rng(1).permutation(13)
    np.testing.assert_array_equal(encode([images[order]])["embedding"], whole["embedding"][order])


def test_how_images_are_grouped_does_not_matter(images, encode):
    whole = encode([images])["embedding"]
    groups = [images[:1], images[1:1], images[1:9], images[9:10], images[10:]]
    np.testing.assert_array_equal(encode(iter(groups))["embedding"], whole)


@pytest.mark.parametrize("batch", [1, 13, 16])
def test_the_batch_size_does_not_matter(encoder, images, encode, batch):
    other = BatchEncoder(encoder, batch=batch, blocks=(0, 2))([images])
    whole = encode([images])
    np.testing.assert_allclose(other["embedding"], whole["embedding"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other["cls"], whole["cls"], rtol=1e-4, atol=1e-4)


def test_the_number_of_devices_does_not_matter(encoder, images, encode):
    one = BatchEncoder(encoder, batch=4, mesh=make_mesh(jax.devices()[:1]))([images])
    assert set(one) == {"embedding"}
    np.testing.assert_allclose(
        one["embedding"], encode([images])["embedding"], rtol=1e-4, atol=1e-4
    )


def test_parameters_split_over_the_devices_give_the_same(encoder, images, encode):
    split = BatchEncoder(encoder, batch=4, blocks=(0, 2), fsdp=True)
    leaf = split._params["block_0"]["mlp"]["fc1"]["kernel"]
    assert leaf.addressable_shards[0].data.size == leaf.size // jax.device_count()
    found = split([images])
    for name, values in encode([images]).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4)


def test_parameters_are_kept_in_the_type_of_computation(encoder, images):
    half = dataclasses.replace(encoder, module=encoder.module.clone(dtype=jnp.bfloat16))
    encode = BatchEncoder(half, batch=13)
    block = encode._params["block_0"]
    assert block["mlp"]["fc1"]["kernel"].dtype == block["attn"]["qkv"]["kernel"].dtype == "bfloat16"
    assert block["norm1"]["scale"].dtype == "float32"  # of which statistics in f32 are scaled
    apply = jax.jit(lambda p, x: half.module.apply({"params": p}, x).embedding)
    expected = apply(encoder.params, half.transform.normalise(images))
    np.testing.assert_allclose(encode([images])["embedding"], expected, rtol=1e-2, atol=1e-2)
    wide = BatchEncoder(encoder, batch=13)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(wide._params)} == {"float32"}


def test_only_what_is_cast_first_of_all_is_cast_ahead():
    params = {name: np.full(2, 1 / 3, np.float32) for name in ("cast", "both", "given", "unused")}

    def function(params, x):
        half = params["cast"].astype(jnp.bfloat16) * params["both"].astype(jnp.bfloat16)
        return half * x + params["both"], params["given"]

    cast = cast_ahead(function, params, np.ones(2, np.float32))
    assert {name: leaf.dtype.name for name, leaf in cast.items()} == {
        "cast": "bfloat16",
        "both": "float32",
        "given": "float32",
        "unused": "float32",
    }
    for before, after in zip(function(params, 2.0), function(cast, 2.0), strict=True):
        np.testing.assert_array_equal(before, after)


def test_it_compiles_once(encoder, images):
    encode = BatchEncoder(encoder, batch=4)
    for count in (1, 4, 7, 13):
        encode([images[:count]])
    assert encode._apply._cache_size() == 1


def test_slides_one_after_another_share_batches(images, encode):
    """Seven images, none, one, five: in batches of four, each slide's features are its own."""
    cuts = {"a": images[:7], "b": images[:0], "c": images[7:8], "d": images[8:]}
    calls, real = [], encode._apply

    def counted(params, batch):
        calls.append(len(batch))
        return real(params, batch)

    encode._apply = counted
    try:
        found = dict(encode.stream((name, [part]) for name, part in cuts.items()))
    finally:
        encode._apply = real
    assert len(calls) == 4  # 13 images; each slide on its own would take five
    assert list(found) == list(cuts)
    assert found.pop("b") == {}
    whole = encode([images])
    for name in ("embedding", "cls"):
        got = np.concatenate([part[name] for part in found.values()])
        np.testing.assert_array_equal(got, whole[name])


def test_a_slide_that_cannot_be_read_does_not_stop_the_others(images, encode):
    def broken():
        yield images[:3]
        raise SlideError("tile 4 is torn")

    slides = [("a", [images[:5]]), ("torn", broken()), ("b", [images[5:]])]
    found = dict(encode.stream(slides))
    assert isinstance(found["torn"], SlideError)
    got = np.concatenate([found["a"]["embedding"], found["b"]["embedding"]])
    np.testing.assert_array_equal(got, encode([images])["embedding"])
    with pytest.raises(SlideError, match="tile 4 is torn"):
        encode(broken())


def test_other_errors_are_not_swallowed(images, encode):
    def wrong():
        yield images[:5]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(encode.stream([("a", wrong())]))


def test_reading_stays_a_few_batches_ahead(images, encode):
    """Memory must not grow with the slide, and a thread must not outlive its reader."""
    taken, before = [], threading.active_count()
    endless = (taken.append(i) or images[:4] for i in itertools.count())
    stream = encode.stream(("slide", [group]) for group in endless)
    for _ in range(5):
        next(stream)
    assert len(taken) < 20
    stream.close()
    assert threading.active_count() == before


def test_identity_binds_weights_options_and_transform(encoder):
    identity = encoder.identity()
    assert identity["weights"] == "hash"
    assert identity["options"] == {"px": PX}
    assert identity["transform"]["px"] == PX
    assert len(identity["transform"]["mean"]) == 3
