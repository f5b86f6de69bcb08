"""Plain NumPy versions of what the encoders do, written from the definitions, in float64."""

import math

import numpy as np


def cubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * (x**3 - 5 * x**2 + 8 * x - 4)
    return 0.0


def resize_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: half-pixel centres, kernel widened when shrinking, weights summing to 1."""
    scale = old / new
    width = max(scale, 1.0)
    rows = []
    for i in range(new):
        centre = (i + 0.5) * scale - 0.5
        row = np.array([cubic((j - centre) / width) for j in range(old)])
        rows.append(row / row.sum())
    return np.array(rows)


def resize(grid: np.ndarray, new: int) -> np.ndarray:
    """[h, w, c] -> [new, new, c], rows and columns one after the other."""
    by_row = np.einsum("ij,jwc->iwc", resize_matrix(grid.shape[0], new), grid)
    return np.einsum("ij,hjc->hic", resize_matrix(grid.shape[1], new), by_row)


def _norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def _dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _attention(x, p, heads):
    count, width = x.shape
    packed = _dense(x, p["qkv"])
    query, key, value = (packed[:, i * width : (i + 1) * width] for i in range(3))
    each = width // heads
    out = np.zeros_like(x)
    for h in range(heads):
        own = slice(h * each, (h + 1) * each)
        for t in range(count):
            scores = np.array([query[t, own] @ key[s, own] for s in range(count)])
            weights = np.exp(scores / math.sqrt(each))
            out[t, own] = weights @ value[:, own] / weights.sum()
    return _dense(out, p["proj"])


def _gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _block(x, p, heads):
    x = x + _attention(_norm(x, p["norm1"]), p["attn"], heads)
    hidden = _gelu(_dense(_norm(x, p["norm2"]), p["mlp"]["fc1"]))
    return x + _dense(hidden, p["mlp"]["fc2"])


def text(params, tokens, *, heads, depth):
    """One sentence of token numbers, without filling -> mean of its tokens after the last norm."""
    x = np.array([params["token_embedding"][t] + params["position"][i]
                  for i, t in enumerate(tokens)])  # fmt: skip
    for index in range(depth):
        x = _block(x, params[f"block_{index}"], heads)
    return _norm(x, params["norm"]).mean(0)


def vit(params, image, *, patch, heads, depth):
    """One image [px, px, 3] -> (embedding, CLS after each block, tokens after each block)."""
    grid = image.shape[0] // patch
    positions = resize(params["grid_position"], grid)
    sequence = [params["cls_token"] + params["cls_position"]]
    for row in range(grid):
        for column in range(grid):
            cut = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            sequence.append(_dense(cut.reshape(-1), params["patch_embed"]) + positions[row, column])
    x, cls, tokens = np.array(sequence), [], []
    for index in range(depth):
        x = _block(x, params[f"block_{index}"], heads)
        cls.append(x[0])
        tokens.append(x[1:].reshape(grid, grid, -1))
    return _norm(x[0], params["norm"]), cls, tokens
