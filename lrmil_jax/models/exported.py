"""`python -m lrmil_jax.models.exported MODEL OUTPUT`: a trained model as files that run without
this package, StableHLO (`jax.export`, for CPU, CUDA and TPU) or ONNX.

An encoder takes LR tiles as they are cut, uint8 [B, px, px, 3], and gives features [B, D]; a head
takes the features of all tiles of a slide and gives what is predicted and each tile's attention.
Means over members are taken by whoever calls them, as `read_exported.py` beside the files does.
"""

import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from lrmil_jax import files
from lrmil_jax.arguments import Parser
from lrmil_jax.data import schema
from lrmil_jax.encoders import attention
from lrmil_jax.errors import ConfigError, UserError
from lrmil_jax.models import model_folder, read_exported
from lrmil_jax.models.slide_model import SlideModel
from lrmil_jax.progress import progress, setup_logging

log = logging.getLogger("lrmil_jax")

PLATFORMS = ("cpu", "cuda", "tpu")
FORMATS = ("stablehlo", "onnx")
# Name, function, and the inputs' shapes and types; the first side of each is free.
_Piece = tuple[str, Callable[..., Any], Sequence[tuple[tuple, type]]]


def write(model: SlideModel, folder: Path, *, format: str = "stablehlo") -> None:
    """Writes encoders and heads of all members, `exported.json` and, for StableHLO, the reader.

    Args:
      model: a model that reads patches of one magnification.
      folder: made if need be; files of these names are replaced.
      format: one of FORMATS.

    Raises:
      ConfigError: the model chooses what it reads, the format is unknown, its library is not
        installed, or the head cannot take any number of patches.
    """
    if format not in FORMATS:
        raise ConfigError(f"there is no format {format!r} of models; take one of {FORMATS}")
    if model.guide is not None:
        raise ConfigError(
            "a model of WISE-FUSE chooses between two encodings what it reads, so it is no single "
            "function; export a model of method lrmil, mil or mil_lr"
        )
    save = _save_stablehlo if format == "stablehlo" else _onnx_writer()
    pieces = list(_pieces(model))
    with progress("exporting", len(pieces)) as bar:
        for piece in pieces:
            save(folder, *piece)
            bar.advance()
    geometry = model.settings.geometry
    facts = {
        "members": len(model.members),
        "task": model.task.facts(),
        "values": list(model.task.parts),
        "px": geometry.patch_px,
        "um_px": geometry.hr_mpp if model.high else geometry.lr_mpp,
        "needs_places": model.members[0][1].needs_xy,
        "model_sha256": None if model.folder is None else model_folder.identity(model.folder),
        "platforms": list(PLATFORMS),
    }
    files.write_json(folder / "exported.json", facts)
    if format == "stablehlo":
        shutil.copyfile(read_exported.__file__, folder / "read_exported.py")


def _pieces(model: SlideModel) -> Iterator[_Piece]:
    px, stored = model.settings.geometry.patch_px, schema.FEATURE_DTYPES[model.dtype]
    for number, (encoder, head) in enumerate(model.members):
        encode = encoder.function()

        def features(images, encode=encode):
            return encode(images).astype(stored).astype(jnp.float32)

        yield f"encoder_{number}", features, [((px, px, 3), np.uint8)]
        inputs = [((head.mean.size,), np.float32), ((2,), np.float32)]
        yield f"head_{number}", head.function, inputs if head.needs_xy else inputs[:1]


def _save_stablehlo(folder: Path, name: str, function: Callable, inputs: Sequence) -> None:
    (size,) = jax_export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((size, *shape), dtype) for shape, dtype in inputs]
    try:
        with attention.unfused():
            exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    except jax.errors.JAXTypeError as error:
        raise ConfigError(_refusal(name)) from error
    with files.atomic_path(folder / f"{name}.stablehlo") as path:
        path.write_bytes(exported.serialize())


def _onnx_writer() -> Callable[..., None]:
    try:
        import jax2onnx
    except ImportError as error:
        raise ConfigError(
            "ONNX needs jax2onnx; install it: pip install 'lrmil_jax[onnx]'"
        ) from error

    def save(folder: Path, name: str, function: Callable, inputs: Sequence) -> None:
        shapes = [jax.ShapeDtypeStruct(("N", *shape), dtype) for shape, dtype in inputs]
        with files.atomic_path(folder / f"{name}.onnx") as path, attention.one_form():
            jax2onnx.to_onnx(function, shapes, return_mode="file", output_path=str(path))

    return save


def _refusal(name: str) -> str:
    return (
        f"{name} cannot be written for any number of patches, as its computation depends on their "
        "number; heads that can: abmil, gated_abmil, mean, max, clam_sb, clam_mb"
    )


def main(
    arguments: Sequence[str] | None = None, prog: str = "python -m lrmil_jax.models.exported"
) -> int:
    """Exit status 0 if all was written."""
    setup_logging()
    parser = Parser(prog, description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder, or a finished work directory")
    parser.add_argument("output", type=Path, help="folder for the files")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0])
    try:
        given = parser.parse_args(arguments)
        write(model_folder.load(given.model), given.output, format=given.format)
    except UserError as error:
        log.error("%s", error)
        return 1
    log.info("exported to %s", given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
