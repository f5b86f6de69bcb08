"""`python -m lrmil_jax.encoders`: every encoder that a config can name, and where to ask for it."""

import rich.box
import rich.console
import rich.table

from lrmil_jax import encoders


def table() -> rich.table.Table:
    """One row an encoder."""
    listing = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for name in ("name", "embedding", "px", "patch", "um/px", "pooling", "licence", "weights from"):
        listing.add_column(name, overflow="fold")
    for name, entry in encoders.ENCODERS.items():
        module, transform = encoders.create(name), encoders.transform(name)
        cut = "" if transform.resize in (None, transform.px) else f" of {transform.resize}"
        listing.add_row(
            name,
            str(module.embedding_width),
            f"{transform.px}{cut}",
            str(module.patch),
            ", ".join(f"{mpp:g}" for mpp in entry.mpp) or "-",
            module.pool,
            entry.licence + (" (on request)" if entry.gated else "") or "-",
            entry.source or "train your own, or any timm ViT of this size",
        )
    return listing


def main() -> None:
    """Prints the table, and below it what could not be checked."""
    console = rich.console.Console()
    console.print(table())
    console.print("Not verified at its source, by encoder:", highlight=False)
    for name, entry in encoders.ENCODERS.items():
        if entry.unverified:
            console.print(f"  {name}: {'; '.join(entry.unverified)}", highlight=False)
    console.print(
        "Weights are never downloaded: --config.encoder.name=NAME --config.encoder.weights=FILE. "
        "An encoder of your own is a Python file that sets ENCODER = "
        "lrmil_jax.encoders.EncoderSpec(...).",
        highlight=False,
    )


if __name__ == "__main__":
    main()
