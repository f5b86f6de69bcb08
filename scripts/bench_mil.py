"""MIL training: this trainer's step against a plain batch-1 PyTorch loop, and host memory.

Both train the same ABMIL (768 -> 128) on the same random bags of 200 to 1,200 instances in
float32 with Adam; rounds are interleaved, so that a slow moment of the machine hits both. PyTorch
is needed for this comparison alone: `pip install torch --index-url
https://download.pytorch.org/whl/cpu`.

    python scripts/bench_mil.py                 # bags per second, ratio, waste by padding
    python scripts/bench_mil.py --memory        # host memory with 100 and with 1,000 slides
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lrmil_jax import heads
from lrmil_jax.data.bag_batches import BagBatches
from lrmil_jax.data.batching import padding_waste
from lrmil_jax.train import TrainSettings, batches, make_mesh, place_batch, replicate, sharding
from lrmil_jax.train.optim import create
from lrmil_jax.train.state import TrainState
from lrmil_jax.train.step import Stepper

WIDTH, HIDDEN, CLASSES = 768, 128, 2


def make_bags(count, seed, sizes=None):
    """Sizes, one bank of features and labels."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(200, 1201, count) if sizes is None else sizes
    bank = rng.standard_normal((sizes.sum(), WIDTH), dtype=np.float32)
    return sizes, bank, rng.integers(0, CLASSES, count).astype(np.int32)


def make_loss(head):
    """Cross-entropy of a batch's bags, as the trainer reads them."""

    def loss_fn(params, constants, batch, key, train):
        instances, batch, where = batches.of_batch(constants, batch)
        options = {**where, "train": train, "rngs": {"dropout": key}}
        output = head.apply({"params": params}, instances, batch["mask"], **options)
        labels = batch["label"]

        def of_logits(logits):
            return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]

        terms = head.label_losses(output, labels, batch["mask"], of_logits)
        return {"loss": sum(terms.values()), **terms}

    return loss_fn


def scaled(bank=None):
    """Constants of a training: features, where they stay on the device, and their scale."""
    scale = {"mean": np.zeros(WIDTH, np.float32), "sd": np.ones(WIDTH, np.float32)}
    return scale if bank is None else scale | {"bank": bank}


class JaxRun:
    """Whole epochs of the trainer's step over Grain's batches, or over an iterator's."""

    def __init__(self, head, sizes, bank, labels, *, budget, bags, places=None, iterate=None):
        self.source = BagBatches(
            sizes, budget=budget, bags_per_update=bags, packed=head.packs,
            per_bag={"label": labels},
            per_instance={"xy": places} if head.needs_xy else {},
        )  # fmt: skip
        self.mesh = make_mesh(jax.devices()[:1])
        example = (jnp.zeros((1, 8, bank.shape[1])), jnp.ones((1, 8), bool))
        params = jax.jit(head.init)(jax.random.key(0), *example)["params"]
        tx = create(TrainSettings(steps=10**6, schedule="constant", weight_decay=0.0))
        state = TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))
        where = sharding.state_shardings(state, self.mesh, fsdp=False)
        self.state = jax.device_put(state, where)
        self.constants = replicate(scaled(bank), self.mesh)
        examples = self.source.bags_of_an_update
        self.stepper = Stepper(make_loss(head), tx, self.mesh, where, examples)
        iterate = iterate or (lambda source: iter(source.dataset()))
        self.iterator, self.key = iterate(self.source), jax.random.key(0)

    def epoch(self):
        """Seconds for every bag once."""
        start, done, summed = time.perf_counter(), 0, None
        while done < self.source.updates:
            batch = next(self.iterator)
            ends = batch.pop("ends_update")
            placed = place_batch(batch, self.mesh)
            arguments = (self.state, self.constants, placed, self.key, 0, summed)
            summed, _ = self.stepper.add(*arguments)
            if ends:
                self.state, measured = self.stepper.update(self.state, summed)
                done, summed = done + 1, None
        jax.block_until_ready(measured)
        return time.perf_counter() - start


class TorchRun:
    """The usual loop: one bag, forward, backward, Adam."""

    def __init__(self, name, sizes, bank, labels, threads, device="cpu"):
        import torch

        torch.set_num_threads(threads)
        self.torch, self.gated = torch, name == "gated_abmil"
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleDict(
            {
                "v": torch.nn.Linear(WIDTH, HIDDEN),
                "u": torch.nn.Linear(WIDTH, HIDDEN),
                "w": torch.nn.Linear(HIDDEN, 1),
                "classifier": torch.nn.Linear(WIDTH, CLASSES),
            }
        ).to(device)
        self.bags = torch.split(torch.from_numpy(bank).to(device), sizes.tolist())
        self.labels = torch.from_numpy(labels).long().to(device)
        self.adam = torch.optim.Adam(self.layers.parameters(), lr=2e-4)
        self.rng = np.random.default_rng(0)

    def epoch(self):
        """Seconds for every bag once."""
        torch, layers = self.torch, self.layers
        start = time.perf_counter()
        for index in self.rng.permutation(len(self.bags)):
            bag = self.bags[index]
            hidden = torch.tanh(layers["v"](bag))
            if self.gated:
                hidden = hidden * torch.sigmoid(layers["u"](bag))
            attention = torch.softmax(layers["w"](hidden), dim=0)
            logits = layers["classifier"](attention.T @ bag)
            loss = torch.nn.functional.cross_entropy(logits, self.labels[index : index + 1])
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        loss.item()  # waits for the device
        return time.perf_counter() - start


def compare(arguments):
    """One table: bags per second of both, median over interleaved rounds, and their ratio."""
    sizes, bank, labels = make_bags(arguments.slides, seed=0)
    for name in arguments.heads:
        head = heads.create(name, num_classes=CLASSES, hidden=HIDDEN)
        ours = JaxRun(head, sizes, bank, labels, budget=arguments.budget, bags=arguments.bags)
        theirs = TorchRun(name, sizes, bank, labels, arguments.threads)
        first = ours.epoch()
        theirs.epoch()
        rounds = [(ours.epoch(), theirs.epoch()) for _ in range(arguments.rounds)]
        jax_rate, torch_rate = (
            len(sizes) / statistics.median(seconds) for seconds in zip(*rounds, strict=True)
        )
        ratios = sorted(theirs_s / ours_s for ours_s, theirs_s in rounds)
        plan = [batch for update in ours.source.plan(0) for batch in update]
        shapes = {(batch.first is None and len(batch.bags), batch.length) for batch in plan}
        print(
            f"{name:12s} lrmil_jax {jax_rate:6.1f} bags/s   torch batch 1 {torch_rate:6.1f} bags/s"
            f"   ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
            f"   waste {padding_waste(plan, sizes):.1%} in {len(shapes)} shapes"
            f"   first epoch, compiling, {first:.1f} s"
        )


def stream(slides):
    """Trains on features read from disk bag by bag; prints the peak of host memory in MiB."""
    import resource

    from lrmil_jax.train import fit

    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 1201, slides)
    with tempfile.TemporaryDirectory() as folder:
        for bag, size in enumerate(sizes):
            np.save(Path(folder) / f"{bag}.npy", rng.random((size, WIDTH), np.float32))
        head = heads.create("abmil", num_classes=CLASSES, hidden=HIDDEN)
        example = (jnp.zeros((1, 8, WIDTH)), jnp.ones((1, 8), bool))
        steps = 300
        source = BagBatches(
            sizes,
            budget=4096,
            bags_per_update=16,
            packed=head.packs,
            per_bag={"label": (sizes % CLASSES).astype(np.int32)},
            read=lambda bag: np.load(Path(folder) / f"{bag}.npy"),
        )
        fit(
            name="memory",
            directory=Path(folder) / "run",
            params=head.init(jax.random.key(0), *example)["params"],
            loss_fn=make_loss(head),
            constants=scaled(),
            batches=source.dataset(),
            validate=None,
            settings=TrainSettings(steps=steps),
            mesh=make_mesh(jax.devices()[:1]),
        )
        disk = sum(path.stat().st_size for path in Path(folder).glob("*.npy")) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{slides:5d} slides, {disk:5.0f} MiB of features: peak host memory {peak:.0f} MiB")


def main():
    """Runs the comparison or the memory measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=4096, help="instances of a batch")
    parser.add_argument("--bags", type=int, default=16, help="of an update")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX uses all cores")
    parser.add_argument("--heads", nargs="+", default=["abmil", "gated_abmil"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--stream", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stream:
        stream(arguments.stream)
    elif arguments.memory:
        for slides in (100, 1000):  # a process each, because a peak never goes down again
            subprocess.run([sys.executable, __file__, "--stream", str(slides)], check=True)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
