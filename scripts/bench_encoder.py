"""Images per second of the vision transformers: beside timm on PyTorch, and from shards.

Parts, the first three each a ratio within one run:
  timm    the same weights and the same batch through our module and through timm's, in turns:
          on CPU in float32; on GPU in bfloat16, timm with torch.compile and SDPA.
  flops   images/s, model FLOP/s and share of the device's peak (--peak TFLOP/s) of several sizes.
  shards  the whole way from region shards to features on disk against the device's work alone: how
          long the device stands idle.
  host    the same way without a device: CPU time of reading and decoding, and of all beside.

  pip install -e '.[parity]'
  python scripts/bench_encoder.py --parts timm shards            # CPU
  python scripts/bench_encoder.py --parts host --size_px 8192
  python scripts/bench_encoder.py --dtype bfloat16 --batch 256 --parts timm flops shards \\
    --models vit-s16 vit-b16 vit-l16 prov-gigapath --peak 989    # GPU

Targets: at least 0.85 of timm on CPU, 1.0 on GPU; at most 10 % idle; at most 0.1 CPU ms a patch
beside decoding.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too

import jax
import jax.numpy as jnp
import numpy as np
from bench_memory import write_slide
from bench_tools import flops, in_turns, seconds, timm_model, unflatten

from lrmil_jax import config as configuration
from lrmil_jax import encoders, processes
from lrmil_jax.encoders import convert
from lrmil_jax.encoders.layouts import LAYOUTS
from lrmil_jax.models import encoding, trained
from lrmil_jax.stages import prepare
from lrmil_jax.train.encode import BatchEncoder, Encoder
from lrmil_jax.workspace import cohorts

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def against_timm(name: str, *, dtype: str, batch: int, px: int, rounds: int, repeats: int) -> None:
    """Prints images/s of both and the ratio."""
    import torch

    # By default PyTorch takes a thread a physical core, XLA one a usable core: both get the same.
    torch.set_num_threads(processes.usable_cores())
    module = encoders.create(name, px=px, dtype=DTYPES[dtype])
    reference = timm_model(module, px=px)
    state = {key: value.numpy for key, value in reference.state_dict().items()}
    flat = convert.convert(Path("timm"), module, state, layout=LAYOUTS["timm"])
    params = jax.device_put(unflatten(flat))
    images = np.random.default_rng(0).normal(size=(batch, px, px, 3)).astype(np.float32)
    ours_in = jax.device_put(images)
    apply = jax.jit(lambda p, x: module.apply({"params": p}, x).embedding)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs_in = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
    reference = reference.to(device)
    if device == "cuda":
        reference = torch.compile(reference)

    def theirs() -> torch.Tensor:
        with (
            torch.inference_mode(),
            torch.autocast(device, dtype=getattr(torch, dtype), enabled=dtype != "float32"),
        ):
            out = reference(theirs_in)
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    error = np.abs(np.asarray(apply(params, ours_in)) - theirs().float().cpu().numpy()).max()
    found = in_turns(
        {"ours": lambda: apply(params, ours_in).block_until_ready(), "timm": theirs},
        rounds=rounds, repeats=repeats,
    )  # fmt: skip
    ratios = np.array(found["timm"]) / np.array(found["ours"])
    rates = {who: batch / np.median(times) for who, times in found.items()}
    print(
        f"{name} at {px} px, batch {batch}, {dtype}, {device}: ours {rates['ours']:.2f} images/s, "
        f"timm {rates['timm']:.2f}; ours/timm median {np.median(ratios):.3f} of {rounds} rounds "
        f"(lowest {ratios.min():.3f}, highest {ratios.max():.3f}); largest difference {error:.1e}",
        flush=True,
    )


def throughput(name: str, *, dtype: str, batch: int, px: int, peak: float | None) -> None:
    """Prints images/s, FLOP/s and the share of the device's peak."""
    module = encoders.create(name, px=px, dtype=DTYPES[dtype])
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, px, px, 3)))["params"]
    images = jax.device_put(np.zeros((batch, px, px, 3), np.float32))
    apply = jax.jit(lambda p, x: module.apply({"params": p}, x).embedding)
    apply(params, images).block_until_ready()
    rate = batch / seconds(lambda: apply(params, images).block_until_ready(), repeats=10)
    work = rate * flops(module, px) / 1e12
    share = "" if peak is None else f", {100 * work / peak:.1f} % of {peak:g} TFLOP/s"
    print(f"{name} at {px} px, batch {batch}, {dtype}: {rate:.1f} images/s, {work:.2f} TFLOP/s"
          f"{share}", flush=True)  # fmt: skip


def shards(
    name: str, *, dtype: str, batch: int, slides: int, size_px: int, parts: Sequence[str]
) -> None:
    """Prints how much longer shards -> features takes than the device's work alone (`shards`), and
    what the host does (`host`)."""
    config = configuration.default()
    with tempfile.TemporaryDirectory(prefix="bench_encoder_") as folder:
        workdir, source = Path(folder) / "run", Path(folder) / "slides"
        source.mkdir()
        rows = ["slide_id,patient_id,label,fold_1"]
        sides = ("train", "train", "val", "val", "test", "test")
        for number in range(slides):
            write_slide(source / f"s{number}.tif", size_px=size_px, levels=(1, 4), mpp=0.5,
                        island=lambda u, v: u < 0.5)  # fmt: skip
            rows.append(f"s{number},p{number},{'ab'[number % 2]},{sides[number % 6]}")
        (Path(folder) / "labels.csv").write_text("\n".join(rows))
        config.data.update(labels=str(Path(folder) / "labels.csv"), slides=str(source))
        config.folds = 1
        config.encoder.update(name=name, batch=batch, dtype=dtype)
        config.method = "mil"
        prepare.run(config, workdir)
        options = {"px": config.geometry.patch_px}
        module = encoders.create(name, dtype=DTYPES[dtype], **options)
        zeros = jnp.zeros((1, module.px, module.px, 3))
        params = jax.jit(module.init)(jax.random.key(0), zeros)["params"]
        encoder = Encoder(
            name, options, module, params, encoders.transform(name, **options), "random"
        )
        jobs = cohorts.slide_jobs(config, workdir, cohorts.read(config, workdir).table)
        if "shards" in parts:
            encode = trained.batch_encoder(config, encoder)
            images = np.stack([one for _, patches in _patches(config, workdir, jobs)
                               for group in patches for one in group])  # fmt: skip
            _idle(encode, images[: len(images) // batch * batch], config, workdir, jobs)
        if "host" in parts:
            without = NoDevice(encoder, batch=batch)
            without.width = module.embedding_width
            _host(without, config, workdir, jobs)


class NoDevice(BatchEncoder):
    """All that the host does, and rows of zeros for features."""

    width: int

    def dispatch(self, images: np.ndarray | None) -> dict:
        """Nothing is computed."""
        return (
            {} if images is None else {"embedding": np.zeros((len(images), self.width), np.float32)}
        )


def _host(encode: NoDevice, config, workdir: Path, jobs: list) -> None:
    """Prints the CPU time of decoding, and of the whole way less that, a patch; least of three."""
    decoding, whole = [], []
    for number in range(3):
        start = time.process_time()
        count = sum(len(group) for _, patches in _patches(config, workdir, jobs)
                    for group in patches)  # fmt: skip
        decoding.append(time.process_time() - start)
        start = time.process_time()
        _write_features(encode, config, workdir, jobs, folder=f"host_{number}")
        whole.append(time.process_time() - start)
    cost, beside = (1e3 * value / count for value in (min(decoding), min(whole) - min(decoding)))
    print(f"host: {cost:.3f} CPU ms a patch to read and decode, {beside:.3f} beside (batches, "
          "sums, writing)", flush=True)  # fmt: skip


def _write_features(
    encode: BatchEncoder, config, workdir: Path, jobs: list, *, folder: str
) -> None:
    target = workdir / "features" / folder
    target.mkdir(parents=True)
    encoding.encode_slides(
        config,
        workdir,
        encode,
        jobs,
        lambda job, _: cohorts.patch_source(config, workdir, job, high=True),
        lambda job, source, rows: encoding.write(config, target, job, rows),
        label="encode_hr",
        total=len(jobs),
    )


def _patches(config, workdir: Path, jobs: list) -> list:
    """Every slide with its HR patches, to be read."""
    return [(job, cohorts.patch_source(config, workdir, job, high=True)) for job in jobs]


def _idle(encode: BatchEncoder, images: np.ndarray, config, workdir, jobs) -> None:
    batch = config.encoder.batch
    encode([images[:batch]])  # compiles
    ready = [jax.device_put(images[at : at + batch]) for at in range(0, len(images), batch)]
    start = time.perf_counter()
    for group in ready:
        out = encode.apply(group)
    jax.block_until_ready(out)
    alone = (time.perf_counter() - start) / len(images)
    start = time.perf_counter()
    _write_features(encode, config, workdir, jobs, folder="hr")
    count = len(images)
    whole = (time.perf_counter() - start) / count
    print(
        f"shards -> features on disk: {count} HR patches of {len(jobs)} slides at {1 / whole:.2f} "
        f"images/s; the device alone does {1 / alone:.2f}: idle {100 * (1 - alone / whole):.1f} %",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--parts", nargs="+", default=["timm"], choices=["timm", "flops", "shards", "host"]
    )
    parser.add_argument("--models", nargs="+", default=["vit-b16"])
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--px", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--peak", type=float, help="of the device, TFLOP/s")
    parser.add_argument("--slides", type=int, default=6, help="at least 6, for `shards`, `host`")
    parser.add_argument("--size_px", type=int, default=4096, help="of the slides for `shards`")
    args = parser.parse_args()
    for name in args.models:
        sizes = {"dtype": args.dtype, "batch": args.batch, "px": args.px}
        if "timm" in args.parts:
            against_timm(name, **sizes, rounds=args.rounds, repeats=args.repeats)
        if "flops" in args.parts:
            throughput(name, **sizes, peak=args.peak)
        if {"shards", "host"} & set(args.parts):
            size = {"slides": args.slides, "size_px": args.size_px}
            shards(name, dtype=args.dtype, batch=args.batch, **size, parts=args.parts)


if __name__ == "__main__":
    main()
