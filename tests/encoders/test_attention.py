"""Which formulation of attention a program has, and that padding for cuDNN changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from lrmil_jax import encoders
from lrmil_jax.encoders import attention

HEADS, WIDTH = 2, 16
CALL = "__cudnn$fmha"


def arguments(tokens, dtype=jnp.float32, *, bias=True):
    rng = np.random.default_rng(0)
    shapes = ((2, tokens, WIDTH), (WIDTH, 3 * WIDTH), (3 * WIDTH,))
    x, kernel, offset = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return x, 0.3 * kernel, offset if bias else None


@pytest.fixture
def cudnn(monkeypatch):
    """JAX believes that cuDNN is installed: enough to trace and to lower, not to run."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    attention._cudnn_has.cache_clear()
    yield
    attention._cudnn_has.cache_clear()


def lowered(platform, dtype=jnp.bfloat16, *, mask=None, heads=HEADS, prepare=lambda f: f):
    run = functools.partial(attention.self_attention, heads=heads, mask=mask)
    program = jax.jit(prepare(lambda *a: run(*a).astype(jnp.float32).sum()))
    return program.trace(*arguments(9, dtype)).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.usefixtures("cudnn")
def test_the_platform_of_the_program_decides():
    assert CALL in lowered("cuda")
    assert CALL not in lowered("cpu")
    backward = lowered("cuda", prepare=lambda f: jax.grad(f, (0, 1, 2)))
    assert "__cudnn$fmhaSoftmaxBackward" in backward
    assert CALL not in lowered("cpu", prepare=lambda f: jax.grad(f, (0, 1, 2)))


@pytest.mark.usefixtures("cudnn")
def test_what_cudnn_cannot_do_is_done_without_it():
    assert CALL not in lowered("cuda", jnp.float32)
    assert CALL not in lowered("cuda", heads=4)  # heads of 4
    assert CALL not in lowered("cuda", mask=jnp.ones((2, 1, 9), bool))


@pytest.mark.usefixtures("cudnn")
def test_unfused_programs_can_be_exported_for_all_platforms():
    with attention.unfused():
        program = jax.jit(functools.partial(attention.self_attention, heads=HEADS))
        exported = jax.export.export(program, platforms=("cpu", "cuda"))(
            *arguments(9, jnp.bfloat16)
        )
    assert exported.platforms == ("cpu", "cuda")
    assert CALL in lowered("cuda")


def test_without_cudnn_every_platform_has_the_plain_one():
    assert CALL not in lowered("cuda")


@pytest.mark.usefixtures("cudnn")
def test_an_encoder_with_prompts_and_a_pooler_lowers_for_cuda():
    options = {"px": 32, "patch": 8, "width": 16, "depth": 1, "heads": 2}
    tower = encoders.create("vit", **options, dtype=jnp.bfloat16, pool="attention", pool_width=16)
    module = encoders.Prompted(tower, 3)
    images = jnp.zeros((1, 32, 32, 3))
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]

    def total(params, images):
        return module.apply({"params": params}, images).embedding.sum()

    program = jax.jit(jax.grad(total)).trace(params, images).lower(lowering_platforms=("cuda",))
    assert program.as_text().count("__cudnn$fmhaSoftmaxBackward") == 1


@pytest.mark.parametrize("tokens", [4, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_padding_and_removing_it_is_not_to_pad(monkeypatch, tokens, bias):
    monkeypatch.setattr(attention, "_cudnn", jax.nn.dot_product_attention)
    given = arguments(tokens, bias=bias)

    def value_and_grads(function):
        def total(*a):
            out = function(*a)
            return (out**2).sum(), out

        return jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*given)

    fused = value_and_grads(functools.partial(attention._fused, HEADS))
    plain = value_and_grads(functools.partial(attention.self_attention, heads=HEADS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), fused, plain)
    # Without a gradient there is no padding at all.
    alone = jax.jit(functools.partial(attention._fused, HEADS))(*given)
    np.testing.assert_allclose(alone, plain[0][1], 1e-4, 1e-4)
