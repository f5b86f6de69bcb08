"""Makes docs/configuration.md of lrmil_jax/config.py: every key, its default, and its comment.

python scripts/config_page.py
"""

from pathlib import Path

from lrmil_jax import config as configuration
from lrmil_jax import config_keys

PAGE = Path(__file__).parents[1] / "docs/configuration.md"
_SHARED = {"training": "Every stage that learns", "bag_training": "Beside them, every MIL training"}
_HEAD = """# Configuration
Made by `python scripts/config_page.py` of the comments in
[lrmil_jax/config.py](../lrmil_jax/config.py). A key is set in a config file
(`config.teacher.bags = 8`) or in the command (`--config.teacher.bags=8`); a mistyped one is
refused, with the nearest that there is. `lrmil keys [WORD]` lists them in the terminal.
"""


def _table(rows: list[tuple[str, object, str]]) -> list[str]:
    lines = ["| key | default | |", "| --- | --- | --- |"]
    for key, value, comment in rows:
        shown = "unset" if value is None else f"`{value!r}`"
        lines.append(f"| `{key}` | {shown} | {comment.strip().replace('|', chr(92) + '|')} |")
    return [*lines, ""]


def page() -> str:
    """The whole page."""
    flat = configuration.flatten(configuration.default())
    told = {(function, key): comment for function, key, comment in config_keys.explained()}
    shared = {
        "training": dict(configuration.training()),
        "bag_training": dict(configuration.bag_training()),
    }
    comments = {key: comment for (function, key), comment in told.items() if function not in shared}
    lines = [_HEAD]
    for function, title in _SHARED.items():
        lines += [f"## {title}", f"Blocks that learn: {_blocks(flat, shared[function])}.", ""]
        mine = [(key, comment) for (where, key), comment in told.items() if where == function]
        lines += _table([(key, shared[function][key], comment) for key, comment in mine])
    order = {key: place for place, key in enumerate(comments)}
    sorted_keys = sorted(flat, key=lambda key: order.get(key, len(order)))
    sections: dict[str, list[str]] = {}
    for key in sorted_keys:
        sections.setdefault(key.rpartition(".")[0], []).append(key)
    for block, keys in sections.items():
        kind = "bag_training" if f"{block}.bags" in flat else "training"
        learns = f"{block}.optimizer" in flat
        of_all = {f"{block}.{key}": value for key, value in shared[kind].items()} if learns else {}
        rows = [
            (key, flat[key], comments.get(key, ""))
            for key in keys if key not in of_all or flat[key] != of_all[key]
        ]  # fmt: skip
        lines += [f"## {block or 'The run'}", *_table(rows)]
    return "\n".join(lines).rstrip() + "\n"


def _blocks(flat: dict[str, object], keys: dict[str, object]) -> str:
    names = dict.fromkeys(key.partition(".")[0] for key in flat)
    return ", ".join(f"`{name}`" for name in names if all(f"{name}.{key}" in flat for key in keys))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
