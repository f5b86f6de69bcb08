"""`python -m lrmil_jax.encoders [NAME]`: the encoders that a config can name, or one in full."""

import math
import sys
from collections.abc import Sequence

import rich.console
import rich.table

from lrmil_jax import encoders
from lrmil_jax.encoders import convert, language, registry
from lrmil_jax.encoders.spec import EncoderSpec
from lrmil_jax.errors import UserError

_WIDE = 130  # columns that hold the addresses too
_OWN = "train your own, or any timm ViT of this size"


def table(width: int = 80) -> rich.table.Table:
    """A line an encoder: what it takes and gives, its licence and, where there is room for it,
    where its weights are.

    Args:
      width: columns of the terminal.
    """
    titles = ["name", "width", "px", "um/px", "ask", "licence"]
    titles += ["weights from"] * (width >= _WIDE)
    listing = rich.table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in titles:
        listing.add_column(title, no_wrap=title not in ("licence", "weights from"))
    for name, entry in encoders.ENCODERS.items():
        module, transform = encoders.create(name), encoders.transform(name)
        cut = "" if transform.resize in (None, transform.px) else f" of {transform.resize}"
        cells = [name, str(module.embedding_width), f"{transform.px}{cut}"]
        cells += [_mpp(entry), "yes" if entry.gated else "", entry.licence or "-"]
        listing.add_row(*cells, *[entry.source or _OWN] * (width >= _WIDE))
    return listing


def _mpp(entry: EncoderSpec) -> str:
    values = sorted(entry.mpp)
    return " to ".join(f"{mpp:g}" for mpp in dict.fromkeys(values[:1] + values[-1:])) or "-"


def facts(name: str) -> dict[str, str]:
    """All that is recorded of an encoder, in words.

    Raises:
      ConfigError: it is none, see `registry.spec`.
    """
    entry, transform = registry.spec(name), encoders.transform(name)
    module = encoders.create(name)
    resized = transform.px if transform.resize is None else transform.resize
    blocks = ", ".join(map(str, encoders.default_layers(module.depth)))
    number = sum(map(math.prod, convert.parameter_shapes(module).values()))
    text = "published with it" if name in language.TEXT_SIZES else "none that can be read"
    pooled = {"cls": "the class token", "mean": "mean of the patch tokens",
              "cls+mean": "class token beside the mean of the patch tokens",
              "attention": "attention over all tokens"}  # fmt: skip
    return {
        "input": f"{transform.px} x {transform.px} px, cut out of tiles resized to {resized} px "
        f"({transform.interpolation})",
        "normalised by": f"mean {_channels(transform.mean)}, SD {_channels(transform.std)}",
        "um/px": ", ".join(f"{mpp:g}" for mpp in entry.mpp) or "not stated by its publisher",
        "embedding": f"{module.embedding_width} numbers: {pooled.get(module.pool, module.pool)}",
        "architecture": f"ViT, patches of {module.patch} px, {module.depth} blocks of width "
        f"{module.width}, {entry.kwargs.get('heads', module.heads)} heads",
        "parameters": f"{number / 1e6:.1f} million",
        "blocks of L_layer": f"{blocks} (distill.layers)",
        "text tower": text,
        "licence": entry.licence or "that of your weights",
        "weights": "on request" if entry.gated else "open to all",
        "from": entry.source or _OWN,
        "names in the file": f"those of {entry.layout}" if entry.layout else "this program's",
        "not verified": "; ".join(entry.unverified) or "-",
    }


def _channels(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _describe(console: rich.console.Console, name: str) -> None:
    listing = rich.table.Table(title=name, title_justify="left", box=None, show_header=False)
    listing.add_column(no_wrap=True)
    listing.add_column(overflow="fold")
    for title, text in facts(name).items():
        listing.add_row(title, text)
    console.print(listing)
    console.print(f"To use it: --config.encoder.name={name} --config.encoder.weights=FILE")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, and below it what could not be checked; or one encoder."""
    given = sys.argv[1:] if arguments is None else arguments
    console = rich.console.Console(highlight=False, markup=False, emoji=False)
    if given:
        try:
            _describe(console, given[0])
        except UserError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        return 0
    console.print(table(console.width))
    console.print("Not verified at its source, by encoder:")
    for name, entry in encoders.ENCODERS.items():
        if entry.unverified:
            console.print(f"  {name}: {'; '.join(entry.unverified)}")
    console.print(
        "ask: its publisher wants to be asked for the weights. `lrmil encoders NAME` says all of "
        "one, and where its weights are. Weights are never downloaded: "
        "--config.encoder.name=NAME --config.encoder.weights=FILE. An encoder of your own is a "
        "Python file that sets ENCODER = lrmil_jax.encoders.EncoderSpec(...)."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
