"""The MIL heads in PyTorch, one bag at a time: what `bench_heads.py` measures ours against.

Plain modules of the same layers and widths as the heads of `lrmil_jax.heads` by default, each with
the loss that it is trained by: `loss(bag [N, D], xy [N, 2], label)`.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def cross_entropy(logits, label):
    """Of class logits [..., C], the mean over all but the last axis."""
    rows = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(rows, torch.full((len(rows),), label))


class Scores(nn.Module):
    """Gated attention logits [N, K]."""

    def __init__(self, width, hidden, branches=1, gated=True):
        super().__init__()
        self.v, self.w = nn.Linear(width, hidden), nn.Linear(hidden, branches, bias=False)
        self.u = nn.Linear(width, hidden) if gated else None

    def forward(self, h):
        hidden = torch.tanh(self.v(h))
        return self.w(hidden if self.u is None else hidden * torch.sigmoid(self.u(h)))


class Pooling(nn.Module):
    """Mean, max or attention pooling of the features."""

    def __init__(self, width, classes, how):
        super().__init__()
        self.how, self.classifier = how, nn.Linear(width, classes)
        if how in ("abmil", "gated_abmil"):
            self.scores = Scores(width, 128, gated=how == "gated_abmil")

    def loss(self, bag, xy, label):
        if self.how == "mean":
            pooled = bag.mean(0)
        elif self.how == "max":
            pooled = bag.max(0).values
        else:
            pooled = torch.softmax(self.scores(bag)[:, 0], 0) @ bag
        return cross_entropy(self.classifier(pooled), label)


class Clam(nn.Module):
    """CLAM with a branch per class or with one."""

    def __init__(self, width, classes, multi):
        super().__init__()
        self.multi, self.project = multi, nn.Sequential(nn.Linear(width, 512), nn.ReLU())
        self.scores = Scores(512, 256, classes if multi else 1)
        count = classes if multi else 1
        self.classifiers = nn.ModuleList(
            nn.Linear(512, 1 if multi else classes) for _ in range(count)
        )
        self.instances = nn.ModuleList(nn.Linear(512, 2) for _ in range(classes))

    def loss(self, bag, xy, label):
        h = self.project(bag)
        scores = self.scores(h)
        pooled = torch.softmax(scores, 0).T @ h
        logits = torch.cat(
            [layer(row) for layer, row in zip(self.classifiers, pooled, strict=True)]
        )
        own = scores[:, label if self.multi else 0]
        k = min(8, len(h) // 2)
        taught = torch.cat([h[own.topk(k).indices], h[own.topk(k, largest=False).indices]])
        wanted = torch.cat([torch.ones(k, dtype=torch.long), torch.zeros(k, dtype=torch.long)])
        margins = self.instances[label](taught) + 1 - F.one_hot(wanted, 2)
        return 0.7 * cross_entropy(logits, label) + 0.3 * F.cross_entropy(margins, wanted)


class Dsmil(nn.Module):
    """DSMIL with deep queries."""

    def __init__(self, width, classes):
        super().__init__()
        self.instances = nn.Linear(width, classes)
        self.query = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.Tanh())
        self.classifier = nn.Linear(classes * width, classes)

    def loss(self, bag, xy, label):
        scored, queries = self.instances(bag), self.query(bag)
        largest, critical = scored.max(0)
        attention = torch.softmax(queries @ queries[critical].T / math.sqrt(128), 0)
        logits = self.classifier((attention.T @ bag).flatten())
        return (cross_entropy(logits, label) + cross_entropy(largest, label)) / 2


class Dtfd(nn.Module):
    """DTFD-MIL, MaxMinS, five pseudo-bags."""

    def __init__(self, width, classes):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, 512), nn.ReLU())
        self.scores = nn.ModuleList([Scores(512, 128), Scores(512, 128)])
        self.classifiers = nn.ModuleList([nn.Linear(512, classes) for _ in range(2)])

    def loss(self, bag, xy, label):
        h, given, first = self.project(bag), [], []
        for part in torch.randperm(len(h)).chunk(5):
            weighted = torch.softmax(self.scores[0](h[part]), 0) * h[part]
            first.append(self.classifiers[0](weighted.sum(0)))
            probability = torch.softmax(weighted @ self.classifiers[0].weight.T, 1)[:, -1]
            given += [h[part[probability.argmax()]], h[part[probability.argmin()]]]
        second = torch.stack(given)
        pooled = torch.softmax(self.scores[1](second)[:, 0], 0) @ second
        logits = self.classifiers[1](pooled)
        return cross_entropy(logits, label) + cross_entropy(torch.stack(first), label)


class Acmil(nn.Module):
    """ACMIL with five branches."""

    def __init__(self, width, classes):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width, 512), nn.ReLU())
        self.scores, self.classifier = Scores(512, 128, 5), nn.Linear(512, classes)
        self.branches = nn.ModuleList([nn.Linear(512, classes) for _ in range(5)])

    def loss(self, bag, xy, label):
        h = self.project(bag)
        scores = self.scores(h).T
        top = scores.topk(min(10, len(h)), 1).indices
        drawn = torch.rand(top.shape).argsort(1)[:, : int(0.6 * top.shape[1])]
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter(1, top.gather(1, drawn), True)
        attention = torch.softmax(scores.masked_fill(mask, -1e9), 1)
        pooled = attention @ h
        logits = torch.stack([layer(row) for layer, row in zip(self.branches, pooled, strict=True)])
        unit = F.normalize(attention, dim=1)
        similarity = torch.triu(unit @ unit.T, 1).sum() / 10
        bag_loss = cross_entropy(self.classifier(pooled.mean(0)), label)
        return bag_loss + cross_entropy(logits, label) + similarity


class TransMil(nn.Module):
    """TransMIL with the widths of the paper."""

    def __init__(self, width, classes):
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(width, 512), nn.ReLU())
        self.token = nn.Parameter(torch.randn(1, 512))
        self.attention = nn.ModuleList([Nystrom(512, 8, 256, 6) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(512) for _ in range(3)])
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(512, 512, size, 1, size // 2, groups=512) for size in (7, 5, 3)]
        )
        self.classifier = nn.Linear(512, classes)

    def loss(self, bag, xy, label):
        h = self.embedding(bag)
        side = math.ceil(math.sqrt(len(h)))
        h = torch.cat([self.token, h, h[: side * side - len(h)]])
        h = h + self.attention[0](self.norms[0](h))
        grid = h[1:].T.reshape(1, 512, side, side)
        grid = grid + sum(layer(grid) for layer in self.convolutions)
        h = torch.cat([h[:1], grid[0].flatten(1).T])
        h = h + self.attention[1](self.norms[1](h))
        return cross_entropy(self.classifier(self.norms[2](h[0])), label)


class Nystrom(nn.Module):
    """Nystrom attention of one sequence [T, W]."""

    def __init__(self, width, heads, landmarks, iterations):
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.along = nn.Conv2d(heads, heads, (33, 1), padding=(16, 0), groups=heads, bias=False)

    def forward(self, x):
        count, m = len(x), self.landmarks
        each = -(-count // m)
        x = F.pad(x, (0, 0, each * m - count, 0))
        q, k, v = self.qkv(x).reshape(len(x), 3, self.heads, -1).permute(1, 2, 0, 3)
        q = q / math.sqrt(q.shape[-1])
        near, far = (part.reshape(self.heads, m, each, -1).mean(2) for part in (q, k))
        first, middle, last = (
            torch.softmax(a @ b.mT, -1) for a, b in ((q, far), (near, far), (near, k))
        )
        one = torch.eye(m)
        inverse = middle.mT / (middle.sum(1).max() * middle.sum(2).max())
        for _ in range(self.iterations):
            a = middle @ inverse
            inverse = inverse @ (13 * one - a @ (15 * one - a @ (7 * one - a))) / 4
        read = (first @ inverse) @ (last @ v) + self.along(v[None])[0]
        return self.out(read.permute(1, 0, 2).flatten(1)[-count:])


class Transformer(nn.Module):
    """Two pre-norm blocks with 2-D ALiBi."""

    def __init__(self, width, classes):
        super().__init__()
        self.embedding, self.token = nn.Linear(width, 512), nn.Parameter(torch.randn(1, 512))
        self.blocks = nn.ModuleList([
            nn.ModuleDict({
                "norm": nn.LayerNorm(512), "qkv": nn.Linear(512, 1536), "out": nn.Linear(512, 512),
                "mlp": nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 512), nn.GELU(),
                                     nn.Linear(512, 512)),
            }) for _ in range(2)
        ])  # fmt: skip
        self.norm, self.classifier = nn.LayerNorm(512), nn.Linear(512, classes)
        self.slopes = 2.0 ** -torch.arange(1.0, 9.0)[:, None, None]

    def loss(self, bag, xy, label):
        h = torch.cat([self.token, self.embedding(bag)])
        bias = F.pad(-self.slopes * torch.cdist(xy, xy), (1, 0, 1, 0))
        for block in self.blocks:
            qkv = block["qkv"](block["norm"](h)).reshape(len(h), 3, 8, 64).permute(1, 2, 0, 3)
            read = F.scaled_dot_product_attention(*qkv, attn_mask=bias)
            h = h + block["out"](read.permute(1, 0, 2).flatten(1))
            h = h + block["mlp"](h)
        return cross_entropy(self.classifier(self.norm(h[0])), label)


class Perceiver(nn.Module):
    """16 latents of 256, two blocks."""

    def __init__(self, width, classes):
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(width, 256), nn.LayerNorm(256))
        self.latents = nn.Parameter(torch.randn(16, 256))
        self.blocks = nn.ModuleList([
            nn.ModuleDict({
                "cross": nn.MultiheadAttention(256, 4), "self": nn.MultiheadAttention(256, 4),
                "norm_cross": nn.LayerNorm(256), "norm_self": nn.LayerNorm(256),
                "mlp": nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 512), nn.GELU(),
                                     nn.Linear(512, 256)),
            }) for _ in range(2)
        ])  # fmt: skip
        self.norm, self.classifier = nn.LayerNorm(256), nn.Linear(256, classes)

    def loss(self, bag, xy, label):
        rows, x = self.embedding(bag), self.latents
        for block in self.blocks:
            x = x + block["cross"](block["norm_cross"](x), rows, rows, need_weights=False)[0]
            y = block["norm_self"](x)
            x = x + block["self"](y, y, y, need_weights=False)[0]
            x = x + block["mlp"](x)
        return cross_entropy(self.classifier(self.norm(x).mean(0)), label)


HEADS = {
    **{
        name: lambda width, classes, name=name: Pooling(width, classes, name)
        for name in ("abmil", "gated_abmil", "mean", "max")
    },
    "clam_sb": lambda width, classes: Clam(width, classes, False),
    "clam_mb": lambda width, classes: Clam(width, classes, True),
    "dsmil": Dsmil,
    "dtfd": Dtfd,
    "acmil": Acmil,
    "transmil": TransMil,
    "transformer": Transformer,
    "perceiver": Perceiver,
}
