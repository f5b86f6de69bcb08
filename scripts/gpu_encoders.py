"""`bench_gpu`: encoders beside timm's, the step of stage 1, and the memory of its gradient."""

import argparse
import functools
import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import bench_distill
import jax
import jax.numpy as jnp
import numpy as np
from bench_tools import Compilations, flops, in_turns, random_params, timm_model, unflatten

from lrmil_jax import encoders
from lrmil_jax.distill.stage1 import make_loss
from lrmil_jax.encoders import attention, convert
from lrmil_jax.encoders.layouts import LAYOUTS
from lrmil_jax.encoders.pretrained import parameter_shapes
from lrmil_jax.train import make_mesh, sharding
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.train.step import gradients

Row = dict[str, Any]
_CALLS = 4  # of an encoder between two waits for the device: it is kept busy, as in a run


def has(*packages: str) -> bool:
    """Whether all can be imported."""
    try:
        return all(importlib.util.find_spec(package) for package in packages)
    except ModuleNotFoundError:
        return False


def _random_images(batch: int, px: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, px, px, 3), dtype=np.uint8)


def _encoder(name: str, options: dict[str, Any], params: Any = None) -> Encoder:
    module = encoders.create(name, dtype=jnp.bfloat16, **options)
    params = random_params(module) if params is None else params
    transform = encoders.transform("vit-tiny", px=module.px)
    return Encoder(name, options, module, params, transform, "random")


def encoder_rows(
    name: str, options: dict[str, Any], batch: int, *, rounds: int, peak: float
) -> list[Row]:
    """Images/s of a model's contestants, in turns, and the share of peak."""
    module = encoders.create(name, **options)
    reference = timm_model(module, px=module.px) if has("torch", "timm") else None
    params = None
    if reference is not None:
        state = {key: value.numpy for key, value in reference.state_dict().items()}
        params = unflatten(convert.convert(Path("timm"), module, state, layout=LAYOUTS["timm"]))
    ours = _encoder(name, options, params)
    images = _random_images(batch, module.px)
    runs = {"ours": _shipped(ours, images), "ours, plain": _plain(ours, images)}
    if reference is not None:
        runs |= _timm(reference, np.asarray(ours.transform.normalise(images)))
    facts, outputs = {}, {}
    for who, run in runs.items():
        compiled, start = Compilations(), time.perf_counter()
        outputs[who] = np.asarray(run(1), np.float32)
        facts[who] = compiled.facts() | {"first_s": round(time.perf_counter() - start, 1)}
    found = in_turns(
        {who: functools.partial(run, _CALLS) for who, run in runs.items()}, rounds=rounds, repeats=1
    )
    rows = []
    for who, times in found.items():
        rate = batch * _CALLS / statistics.median(times)
        rows.append({
            "what": f"{name}, {module.px} px, batch {batch}: {who}",
            "rate": rate,
            "unit": "images/s",
            "share": rate * flops(module, module.px) / peak,
            "spread": [batch * _CALLS / max(times), batch * _CALLS / min(times)],
            "cosine": _cosine(outputs[who], outputs["ours"]),
            **facts[who],
        })  # fmt: skip
    return with_ratios(rows, of="timm, compiled")


def _shipped(encoder: Encoder, images: np.ndarray):
    encode = BatchEncoder(encoder, batch=len(images))
    return _calls(encode.apply, jax.device_put(images), lambda out: out["embedding"])


def _plain(encoder: Encoder, images: np.ndarray):
    """Without cuDNN, and parameters that are cast in every call."""

    @jax.jit
    def apply(params, images):
        with attention.unfused():
            normalised = encoder.transform.normalise(images)
            return encoder.module.apply({"params": params}, normalised).embedding

    params = jax.device_put(encoder.params)
    return _calls(lambda images: apply(params, images), jax.device_put(images), lambda out: out)


def _calls(apply, images, embedding):
    def run(count: int) -> jax.Array:
        outputs = [apply(images) for _ in range(count)]
        return jax.block_until_ready(embedding(outputs[-1]))

    return run


def _timm(reference, images: np.ndarray) -> dict[str, Any]:
    """timm's model in bfloat16 with the same weights and images, eager and (on CUDA) compiled."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = reference.to(device).bfloat16()
    placed = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device).bfloat16()

    def calls(model):
        def run(count: int) -> np.ndarray:
            with torch.inference_mode():
                outputs = [model(placed) for _ in range(count)]
            if device == "cuda":
                torch.cuda.synchronize()
            return outputs[-1].float().cpu().numpy() if count == 1 else None

        return run

    runs = {"timm, eager": calls(model)}
    return runs | ({"timm, compiled": calls(torch.compile(model))} if device == "cuda" else {})


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    """The lowest of any image."""
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return float(((left * right).sum(-1) / norms).min())


def with_ratios(rows: list[Row], *, of: str) -> list[Row]:
    """The rows, and their rate over that of the row whose name ends so, if there is one."""
    rates = [row["rate"] for row in rows if row["what"].endswith(of)]
    return [row | {"ratio": row["rate"] / rates[0], "of": of} if rates else row for row in rows]


def stage1_row(name: str, options: dict[str, Any], batch: int, *, rounds: int, peak: float) -> Row:
    """Images/s of the trainer's step: gradient, clipping, AdamW."""
    reader = _encoder(name, options)
    module = reader.module
    blocks = encoders.default_layers(module.depth)
    shape = argparse.Namespace(batch=batch, px=module.px, width=module.width)
    compiled, start = Compilations(), time.perf_counter()
    step, _ = bench_distill.our_step(reader, bench_distill.random_batch(shape, blocks), blocks)
    step()
    facts = compiled.facts() | {"first_s": round(time.perf_counter() - start, 1)}
    times = in_turns({"step": step}, rounds=rounds, repeats=5)["step"]
    rate = batch / statistics.median(times)
    return {
        "what": f"stage 1's step, {name}, {module.px} px, batch {batch}",
        "rate": rate,
        "unit": "images/s",
        "share": 3 * rate * flops(module, module.px) / peak,
        "spread": [batch / max(times), batch / min(times)],
        **facts,
    }  # fmt: skip


def memory_row(name: str, options: dict[str, Any], batch: int, *, remat: bool) -> Row:
    """GiB of what the gradient of stage 1 keeps and computes with."""
    module = encoders.create(name, dtype=jnp.bfloat16, **options).clone(remat=remat)
    blocks = encoders.default_layers(module.depth)
    shape = argparse.Namespace(batch=batch, px=module.px, width=module.embedding_width)
    transform = encoders.transform("vit-tiny", px=module.px)
    loss_fn = make_loss(module, transform, blocks, lambda_layer=1.0, lambda_attn=1.0)
    arguments = (
        unflatten({k: np.zeros(s, np.float32) for k, s in parameter_shapes(module).items()}),
        {"scale": np.ones(len(blocks), np.float32)},
        bench_distill.random_batch(shape, blocks),
    )
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    compiled = Compilations()
    program = jax.jit(lambda *a: gradients(loss_fn, *a, jax.random.key(0))).lower(*abstract)
    options = sharding.compiler_options(make_mesh())
    built = program.compile(compiler_options=options)
    needed = built.memory_analysis().temp_size_in_bytes / 2**30
    return {
        "what": f"gradient of stage 1, {name}, batch {batch}, {'with' if remat else 'without'} "
        "remat",
        "told": f"{needed:.1f} GiB",
        "gib": needed,
        **compiled.facts(),
    }
