"""The heads of the papers in NumPy: one bag at a time, float64, loops where the paper has sums.

Parameters are those of the module, as nested dicts; each function gives what it is compared by.
"""

import numpy as np
from scipy.special import log_softmax, softmax


def double(tree):
    """Parameters in float64."""
    return {
        key: double(value) if isinstance(value, dict) else np.asarray(value, np.float64)
        for key, value in tree.items()
    }


def linear(layer, x):
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def norm(layer, x, epsilon=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * layer["scale"] + layer["bias"]


def relu(x):
    return np.maximum(x, 0.0)


def gelu(x):  # the tanh approximation, as flax has it
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def scores(layer, h):
    """Gated attention, [N, branches]."""
    v, u = np.tanh(linear(layer["v"], h)), 1 / (1 + np.exp(-linear(layer["u"], h)))
    return (v * u) @ layer["w"]


def projected(p, x):
    return relu(linear(p["projection"]["dense"], x)) if "projection" in p else x


def cross_entropy(logits, label):
    return -log_softmax(logits)[label]


def clam(p, x, label, *, k, bag_weight, subtyping):
    """Logits and the two terms of the loss; one branch or one per class."""
    h = projected(p, x)
    attention = scores(p["attention"], h)
    weights = softmax(attention, 0)
    pooled = weights.T @ h
    if attention.shape[1] == 1:
        logits = linear(p["classifier"], pooled[0])
    else:
        own = p["classifier"]
        logits = np.array([
            pooled[c] @ own["kernel"][c, :, 0] + own["bias"][c, 0] for c in range(len(pooled))
        ])  # fmt: skip
    k, classes, total = min(k, len(x) // 2), len(logits), 0.0
    for c in range(classes):
        order = np.argsort(attention[:, c if attention.shape[1] > 1 else 0])
        kernel, bias = (p["instance_classifiers"][part][c] for part in ("kernel", "bias"))
        top = [(h[n] @ kernel + bias, int(c == label)) for n in order[::-1][:k]]
        bottom = [(h[n] @ kernel + bias, 0) for n in order[:k]] if c == label else []
        taught = top + bottom if c == label or subtyping else []
        if taught:
            margins = [s[1 - y] + 1 - s[y] for s, y in taught]
            total += np.mean([np.logaddexp(0, margin) for margin in margins])
    total /= classes if subtyping else 1
    return {
        "logits": logits,
        "ce": bag_weight * cross_entropy(logits, label),
        "instance": (1 - bag_weight) * total,
    }


def dsmil(p, x, label):
    """Logits, both terms, and the attention of every class."""
    scored = linear(p["instance_classifier"], x)
    queries = np.tanh(linear(p["query_2"], relu(linear(p["query"], x))))
    pooled, attention = [], []
    for c in range(scored.shape[1]):
        likeness = queries @ queries[scored[:, c].argmax()] / np.sqrt(queries.shape[1])
        attention.append(softmax(likeness))
        pooled.append(attention[-1] @ x)
    bag = linear(p["classifier"], np.concatenate(pooled))
    return {
        "logits": (bag + scored.max(0)) / 2,
        "ce": cross_entropy(bag, label) / 2,
        "max_instance": cross_entropy(scored.max(0), label) / 2,
        "attention": np.mean(attention, 0),
    }


def dtfd(p, x, label, *, pseudo_bags, distill):
    """Logits and both tiers' terms, with row n in pseudo-bag n mod M."""
    h, given, tier_one = projected(p, x), {"max": [], "min": []}, []
    for m in range(min(pseudo_bags, len(x))):
        part = h[m::pseudo_bags]
        weights = softmax(scores(p["attention_1"], part)[:, 0])
        logits = linear(p["classifier_1"], weights @ part)
        tier_one.append(cross_entropy(logits, label))
        activation = (weights[:, None] * part) @ p["classifier_1"]["kernel"]
        ranking = logits.argmax() if len(logits) > 2 else len(logits) - 1
        probability = softmax(activation, 1)[:, ranking]
        given["max"].append(weights @ part if distill == "afs" else part[probability.argmax()])
        given["min"].append(part[probability.argmin()])
    second = np.stack(given["max"] + (given["min"] if distill == "maxmin" else []))
    weights = softmax(scores(p["attention_2"], second)[:, 0])
    logits = linear(p["classifier_2"], weights @ second)
    return {
        "logits": logits,
        "ce": cross_entropy(logits, label),
        "pseudo_bags": np.mean(tier_one),
    }


def acmil(p, x, label, *, diversity):
    """Logits, the three terms and the mean attention, with nothing left out."""
    h = projected(p, x)
    attention = softmax(scores(p["attention"], h), 0).T
    own, branches = p["branch_classifiers"], []
    for m, weights in enumerate(attention):
        branches.append(cross_entropy(weights @ h @ own["kernel"][m] + own["bias"][m], label))
    cosines = [
        left @ right / np.linalg.norm(left) / np.linalg.norm(right)
        for m, left in enumerate(attention)
        for right in attention[m + 1 :]
    ]
    mean = attention.mean(0)
    logits = linear(p["classifier"], mean @ h)
    return {
        "logits": logits,
        "ce": cross_entropy(logits, label),
        "branches": np.mean(branches),
        "diversity": diversity * np.mean(cosines),
        "attention": mean,
    }


def perceiver(p, x, *, heads):
    """Logits."""
    instances = norm(p["norm_instances"], linear(p["embedding"], x))
    latents, block = p["latents_0"], 0
    while f"norm_cross_{block}" in p:
        for kind, rows in (("cross", instances), ("self", None)):
            normed = norm(p[f"norm_{kind}_{block}"], latents)
            query = linear(p[f"{kind}_{block}_query"], normed)
            keys, values = np.split(
                linear(p[f"{kind}_{block}_rows"], normed if rows is None else rows), 2, -1
            )
            latents = latents + linear(p[f"{kind}_{block}_out"], read(query, keys, values, heads))
        hidden = gelu(linear(p[f"mlp_{block}"], norm(p[f"norm_mlp_{block}"], latents)))
        latents = latents + linear(p[f"mlp_out_{block}"], hidden)
        block += 1
    return {"logits": linear(p["classifier"], norm(p["norm"], latents).mean(0))}


def read(query, keys, values, heads, bias=None):
    """Softmax attention, head by head; `bias` [heads, queries, keys] is added to the logits."""
    parts = []
    for h, (q, k, v) in enumerate(
        zip(*(np.split(part, heads, -1) for part in (query, keys, values)), strict=True)
    ):
        logits = q @ k.T / np.sqrt(q.shape[1]) + (0 if bias is None else bias[h])
        parts.append(softmax(logits, 1) @ v)
    return np.concatenate(parts, -1)


def turned(vectors, xy, heads):
    """Rotary places, a complex number a pair: half of each head's numbers by x, half by y."""
    places = np.concatenate([np.zeros((1, 2)), xy - xy.mean(0)])
    found = []
    for part in np.split(vectors, heads, -1):
        for axis, half in enumerate(np.split(part, 2, -1)):
            count = half.shape[1] // 2
            pairs = half[:, :count] + 1j * half[:, count:]
            speed = np.array([1000.0 ** -(number / count) for number in range(count)])
            pairs = pairs * np.exp(1j * places[:, axis : axis + 1] * speed)
            found += [pairs.real, pairs.imag]
    return np.concatenate(found, -1)


def transformer(p, x, xy, *, heads, positions="alibi"):
    """Logits, with 2-D ALiBi or rotary places."""
    tokens = np.concatenate([p["token"][0], linear(p["embedding"], x)])
    bias = np.zeros((heads, len(tokens), len(tokens)))
    for h in range(heads):
        for i in range(len(x)):
            for j in range(len(x)):
                distance = np.hypot(*(xy[i] - xy[j]))
                bias[h, i + 1, j + 1] = -(2.0 ** (-8 * (h + 1) / heads)) * distance
    bias = bias * (positions == "alibi")
    block = 0
    while f"norm_{block}" in p:
        parts = np.split(linear(p[f"qkv_{block}"], norm(p[f"norm_{block}"], tokens)), 3, -1)
        if positions == "rotary":
            parts = [turned(parts[0], xy, heads), turned(parts[1], xy, heads), parts[2]]
        tokens = tokens + linear(p[f"out_{block}"], read(*parts, heads, bias))
        hidden = gelu(linear(p[f"mlp_{block}"], norm(p[f"norm_mlp_{block}"], tokens)))
        tokens = tokens + linear(p[f"mlp_out_{block}"], hidden)
        block += 1
    return {"logits": linear(p["classifier"], norm(p["norm"], tokens[0]))}


def transmil(p, x, *, heads, landmarks, iterations):
    """Logits."""
    side = int(np.ceil(np.sqrt(len(x))))
    tokens = relu(linear(p["embedding"], x))
    tokens = np.concatenate([p["token"][0], tokens, tokens[: side**2 - len(x)]])
    for layer in range(2):
        normed = norm(p[f"norm_{layer}"], tokens, 1e-5)
        options = {"heads": heads, "landmarks": landmarks, "iterations": iterations}
        tokens = tokens + nystrom(p[f"attention_{layer}"], normed, **options)
        if layer == 0:
            tokens = np.concatenate([tokens[:1], ppeg(p["ppeg"], tokens[1:], side)])
    return {"logits": linear(p["classifier"], norm(p["norm"], tokens[0], 1e-5))}


def ppeg(p, tokens, side):
    grid = tokens.reshape(side, side, -1)
    total = grid.copy()
    for size in (7, 5, 3):
        reach = size // 2
        padded = np.pad(grid, ((reach, reach), (reach, reach), (0, 0)))
        for r in range(side):
            for c in range(side):
                window = padded[r : r + size, c : c + size]
                total[r, c] += (window * p[f"kernel_{size}"]).sum((0, 1)) + p[f"bias_{size}"]
    return total.reshape(len(tokens), -1)


def nystrom(p, tokens, *, heads, landmarks, iterations):
    count, each = len(tokens), -(-len(tokens) // landmarks)
    x = np.concatenate([np.zeros((each * landmarks - count, tokens.shape[1])), tokens])
    parts = [np.split(part, heads, -1) for part in np.split(linear(p["qkv"], x), 3, -1)]
    maps, values = [], []
    for q, k, v in zip(*parts, strict=True):
        q = q / np.sqrt(q.shape[1])
        near, far = (part.reshape(landmarks, each, -1).mean(1) for part in (q, k))
        maps.append([softmax(a @ b.T, 1) for a, b in ((q, far), (near, far), (near, k))])
        values.append(v)
    scale = max(np.abs(m[1]).sum(0).max() for m in maps) * max(
        np.abs(m[1]).sum(1).max() for m in maps
    )
    read = []
    for h, ((first, middle, last), v) in enumerate(zip(maps, values, strict=True)):
        inverse, one = middle.T / scale, np.eye(landmarks)
        for _ in range(iterations):
            a = middle @ inverse
            inverse = inverse @ (13 * one - a @ (15 * one - a @ (7 * one - a))) / 4
        kernel = p["residual"][:, h]
        padded = np.pad(v, ((len(kernel) // 2,) * 2, (0, 0)))
        along = [kernel @ padded[t : t + len(kernel)] for t in range(len(v))]
        read.append(first @ inverse @ last @ v + np.stack(along))
    return linear(p["out"], np.concatenate(read, -1))[-count:]


def topk(p, x, *, k):
    scores = np.sort(linear(p["classifier"], projected(p, x)), axis=0)[::-1]
    return {"logits": scores[:k].mean(0)}


def noisy_and(p, x, *, slope):
    share = sigmoid(p["share"])
    mean = sigmoid(linear(p["classifier"], projected(p, x))).mean(0)
    lowest = sigmoid(-slope * share)
    probability = (sigmoid(slope * (mean - share)) - lowest) / (
        sigmoid(slope * (1 - share)) - lowest
    )
    return {"logits": np.log(probability / (1 - probability))}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))
