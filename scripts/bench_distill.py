"""One step of stage 1 beside PyTorch: the same encoder, weights, batch, losses and optimiser.

A step is the forward pass of the LR encoder, L_layer at the default blocks and L_attn, their
gradient, clipping and AdamW. Ours is the trainer's own step (`train.step.Stepper`); PyTorch's is
timm's model with the same losses written in PyTorch. They take turns; the ratio is PyTorch's
seconds over ours, so above 1 we are faster. The first step's loss and gradient are compared.
Then the loader: pairs a second, decoded and batched, with one thread and one core's worth of work.

  pip install -e '.[parity]'
  python scripts/bench_distill.py                          # DeiT-Ti at 128 px, batch 32
  python scripts/bench_distill.py --width 384 --heads 6 --px 256 --batch 16

Target: at least 1.0 of PyTorch in float32; 600 pairs a second a core.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_tools import in_turns, timm_model, unflatten

from lrmil_jax import encoders, processes
from lrmil_jax.distill.stage1 import make_loss
from lrmil_jax.encoders import convert
from lrmil_jax.encoders.layouts import LAYOUTS
from lrmil_jax.train import optim, sharding
from lrmil_jax.train.encode import Encoder
from lrmil_jax.train.state import TrainSettings, TrainState
from lrmil_jax.train.step import Stepper, gradients

RATIO = 4
SETTINGS = TrainSettings(steps=1000, learning_rate=1e-4, weight_decay=0.05, clip_norm=1.0)


def random_batch(args: argparse.Namespace, blocks: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Pairs of noise, of the shapes that stage 1 has."""
    rng = np.random.default_rng(0)
    children = (args.batch, RATIO, RATIO)
    return {
        "lr": rng.integers(0, 256, (args.batch, args.px, args.px, 3), dtype=np.uint8),
        "child_embedding": rng.normal(size=(args.batch, RATIO**2, args.width)).astype(np.float32),
        "child_cls": rng.normal(size=(*children, len(blocks), args.width)).astype(np.float32),
        "child_mask": rng.random(children) < 0.9,
        "attention": rng.normal(size=(args.batch, RATIO**2)).astype(np.float32),
        "weight": np.ones(args.batch, np.float32),
    }


def our_step(encoder: Encoder, batch: dict, blocks: tuple[int, ...]):
    """The trainer's step, and loss and gradient of the first, as functions without arguments."""
    loss_fn = make_loss(
        encoder.module, encoder.transform, blocks, lambda_layer=1.0, lambda_attn=1.0
    )
    mesh, tx = sharding.make_mesh(), optim.create(SETTINGS)
    constants = {"scale": jnp.ones(len(blocks))}
    params = jax.tree.map(jnp.asarray, encoder.params)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))
    shardings = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    stepper = Stepper(loss_fn, tx, mesh, shardings)
    held = [jax.device_put(state, shardings)]
    placed, key = sharding.place_batch(batch, mesh), jax.random.key(0)

    def step() -> None:
        totals, _ = stepper.add(held[0], constants, placed, key, 0, None)
        held[0], measured = stepper.update(held[0], totals)
        jax.block_until_ready(measured)

    def first() -> tuple[float, float]:
        run = jax.jit(lambda p: gradients(loss_fn, p, constants, batch, jax.random.key(0)))
        summed = run(encoder.params)
        grad = optax.tree.norm(summed.grads) / len(batch["lr"])
        return float(summed.terms["loss"]) / len(batch["lr"]), float(grad)

    return step, first


def torch_step(reference, encoder: Encoder, batch: dict, blocks: tuple[int, ...]):
    """The same step in PyTorch."""
    import torch

    model = reference.train()
    normalised = np.array(encoder.transform.normalise(batch["lr"]))
    images = torch.from_numpy(normalised.transpose(0, 3, 1, 2).copy())
    targets = torch.from_numpy(np.moveaxis(batch["child_cls"], 3, 0).copy())
    embedding = torch.from_numpy(batch["child_embedding"])
    mask = torch.from_numpy(batch["child_mask"])
    attention = torch.from_numpy(batch["attention"])
    flat = mask.flatten(1)
    weights = attention.masked_fill(~flat, -torch.inf).softmax(1)
    decayed = [p for p in model.parameters() if p.ndim >= 2 and p.shape[0] > 1]
    others = [p for p in model.parameters() if not (p.ndim >= 2 and p.shape[0] > 1)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-4)
    window = encoder.transform.px // encoder.module.patch // RATIO

    def loss() -> torch.Tensor:
        final, found = model.forward_intermediates(
            images, indices=list(blocks), return_prefix_tokens=False, output_fmt="NLC"
        )
        layer = 0.0
        for tokens, target in zip(found, targets, strict=True):
            grid = tokens.reshape(len(tokens), RATIO, window, RATIO, window, -1).mean((2, 4))
            squares = (grid - target).square().mean(-1)
            layer = layer + (squares * mask).sum((1, 2)) / mask.sum((1, 2))
        student = model.forward_head(final, pre_logits=True)
        apart = (embedding - student[:, None]).square().mean(-1)
        return (layer / len(found) + (weights * apart).sum(1)).mean()

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    first = loss()
    first.backward()
    norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
    return step, first.item(), norm.item()


def against_torch(args: argparse.Namespace) -> None:
    """Prints milliseconds of both steps and their ratio."""
    import torch

    torch.set_num_threads(processes.usable_cores())
    shape = {"width": args.width, "depth": args.depth, "heads": args.heads, "patch": 16}
    module = encoders.VisionTransformer(px=args.px, **shape)
    reference = timm_model(module, px=args.px)
    state = {key: value.detach().clone().numpy for key, value in reference.state_dict().items()}
    flat = convert.convert(Path("timm"), module, state, layout=LAYOUTS["timm"])
    transform = encoders.transform("vit-tiny", px=args.px)
    encoder = Encoder("vit", {}, module, unflatten(flat), transform, "random")
    blocks = tuple(block % args.depth for block in encoders.default_layers(args.depth))
    batch = random_batch(args, blocks)
    ours, first = our_step(encoder, batch, blocks)
    loss, norm = first()
    theirs, their_loss, their_norm = torch_step(reference, encoder, batch, blocks)
    found = in_turns({"ours": ours, "torch": theirs}, rounds=args.rounds, repeats=2)
    ratios = np.array(found["torch"]) / np.array(found["ours"])
    print(
        f"stage 1, width {args.width}, depth {args.depth}, {args.px} px, batch {args.batch}, f32: "
        f"ours {1e3 * np.median(found['ours']):.0f} ms, "
        f"torch {1e3 * np.median(found['torch']):.0f} ms; torch/ours median "
        f"{np.median(ratios):.3f} of {args.rounds} rounds ({ratios.min():.3f} to "
        f"{ratios.max():.3f}); first loss {loss:.6f} and {their_loss:.6f}, gradient {norm:.6f} "
        f"and {their_norm:.6f}",
        flush=True,
    )


def write_pairs(folder: Path, *, patches: int, width: int, layers: int):
    """A slide's LR tiles of 256 px with the children's features, as stage 1 reads them."""
    import imagecodecs

    from lrmil_jax.data import features, schema, writer
    from lrmil_jax.patches.pairs import PatchPairs

    geometry = schema.Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=256)
    rng = np.random.default_rng(0)
    tiles = [np.clip(rng.normal(180, 14, (256, 256, 3)), 0, 255).astype(np.uint8) for _ in range(8)]
    encoded = [imagecodecs.png_encode(tile, level=0) for tile in tiles]
    place = {"slide_id": "s", "lr_side": 1024, "child_mask": np.ones((RATIO, RATIO), bool)}
    examples = (
        place | {"index": i, "lr_xy": np.array([i, 0], np.int32), "lr": encoded[i % 8]}
        for i in range(patches)
    )
    shard, target = folder / "s.array_record", folder / "t.array_record"
    writer.write_records(shard, schema.region_features(geometry), examples)
    count = patches * RATIO**2
    rows = features.SlideFeatures(
        embedding=rng.normal(size=(count, width)).astype(np.float32),
        xy=np.zeros((count, 2), np.int32),
        parent=np.repeat(np.arange(patches, dtype=np.int32), RATIO**2),
        child=np.tile(np.arange(RATIO**2, dtype=np.int32), patches),
        child_mask=np.ones((count, RATIO, RATIO), bool),
        cls=rng.normal(size=(count, layers, width)).astype(np.float32),
    )
    features.write(target, "s", rows, dtype="float16", block=None)
    names = ("embedding", "child", "cls")
    parser = schema.RecordParser(features.row_features(rows, "float16"), names)
    logits = [np.zeros(count, np.float32)]
    return PatchPairs([shard], [target], counts=[patches], geometry=geometry,
                      target_parser=parser, attention=logits)  # fmt: skip


def loader(args: argparse.Namespace) -> None:
    """Prints pairs a second of CPU time and of wall time."""
    with tempfile.TemporaryDirectory(prefix="bench_distill_") as folder:
        pairs = write_pairs(Path(folder), patches=512, width=768, layers=4)
        steps = args.pairs // 64
        batches = iter(pairs.batches(batch=64, seed=0, steps=steps, threads=args.threads))
        next(batches)
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps - 1):
            next(batches)
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    count = 64 * (steps - 1)
    print(
        f"loader: {count / cpu:.0f} pairs a second a core, {count / wall:.0f} with "
        f"{args.threads} threads ({1e3 * cpu / count:.2f} CPU ms a pair)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["step", "loader"])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=4)
    args = parser.parse_args()
    if "step" in args.parts:
        against_torch(args)
    if "loader" in args.parts:
        loader(args)


if __name__ == "__main__":
    main()
