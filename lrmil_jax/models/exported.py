"""`lrmil convert MODEL OUTPUT`: a trained model as files that run without this package, StableHLO
(`jax.export`, for CPU, CUDA and TPU) or ONNX.

An encoder takes tiles as they are cut (`px` and `um_px` in exported.json), uint8 [B, px, px, 3],
and gives features [B, D]; a head takes the features of all tiles of a slide and gives what is
predicted and each tile's attention. Means over members are taken by whoever calls them, as
`read_exported.py` beside the files does.
"""

import functools
import logging
import sys
import tempfile
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
from lrmil_jax.train.bag_model import FILLING, BagModel

log = logging.getLogger("lrmil_jax")

PLATFORMS = ("cpu", "cuda", "tpu")
FORMATS = ("stablehlo", "onnx")
_FACTS, _READER = "exported.json", "read_exported.py"
# Inputs of a function: shapes behind the free first side, and types.
_Inputs = Sequence[tuple[tuple[int, ...], type]]
_Serialise = Callable[[Callable[..., Any], _Inputs], bytes]


def write(model: SlideModel, folder: Path, *, format: str = "stablehlo") -> None:
    """Writes encoders and heads of all members, `exported.json` and, for StableHLO, the reader.

    Nothing is written before all is made, and `exported.json`, without which nothing is read,
    comes last; an earlier export in the folder is taken away.

    Args:
      model: a model that reads patches of one magnification.
      folder: made if need be.
      format: one of FORMATS.

    Raises:
      ConfigError: the model chooses what it reads, the format is unknown, its library is not
        installed, or the head cannot take any number of patches.
    """
    if format not in FORMATS:
        raise ConfigError(f"there is no format {format!r} of models; take one of {FORMATS}")
    if model.guide is not None:
        raise ConfigError(
            "a model whose LR patches choose HR patches decides between two encodings what it "
            "reads, so it is no single function; export a model of method lrmil, mil or mil_lr"
        )
    serialise = _stablehlo if format == "stablehlo" else _onnx()
    made = {}
    with progress("exporting", 2 * len(model.members)) as bar:
        for name, content in _pieces(model, serialise):
            made[f"{name}.{format}"] = content
            bar.advance()
    if format == "stablehlo":
        made[_READER] = Path(read_exported.__file__).read_bytes()
    for old in (folder / _FACTS, folder / _READER, *folder.glob("*_[0-9]*.*")):
        if old.suffix in (".json", ".py", *(f".{each}" for each in FORMATS)):
            old.unlink(missing_ok=True)
    for name, content in made.items():
        with files.atomic_path(folder / name) as path:
            path.write_bytes(content)
    files.write_json(folder / _FACTS, _facts(model, format))


def _facts(model: SlideModel, format: str) -> dict[str, Any]:
    geometry = model.settings.geometry
    return {
        "format": format,
        "members": len(model.members),
        "task": model.task.facts(),
        "values": list(model.task.parts),
        "px": geometry.patch_px,
        "um_px": geometry.hr_mpp if model.high else geometry.lr_mpp,
        "model_sha256": None if model.folder is None else model_folder.identity(model.folder),
    }


def _pieces(model: SlideModel, serialise: _Serialise) -> Iterator[tuple[str, bytes]]:
    px, stored = model.settings.geometry.patch_px, schema.FEATURE_DTYPES[model.dtype]
    for number, (encoder, head) in enumerate(model.members):
        encode = encoder.function()

        def features(images, encode=encode):
            return encode(images).astype(stored).astype(jnp.float32)

        yield f"encoder_{number}", serialise(features, [((px, px, 3), np.uint8)])
        # Filling is for a symbolic number of patches, which jax2onnx does not reckon with.
        filling = FILLING if serialise is _stablehlo else 0
        yield f"head_{number}", of_head(head, serialise, filling=filling)


def of_head(head: BagModel, serialise: _Serialise, *, filling: int = FILLING) -> bytes:
    """A head as a function of any number of patches.

    Raises:
      ConfigError: what it computes depends on their number.
    """
    try:
        if head.needs_xy:
            raise ValueError("it must be told where patches lie")
        function = functools.partial(head.function, filling=filling)
        return serialise(function, [((head.mean.size,), np.float32)])
    except (
        ValueError,
        TypeError,
        NotImplementedError,
        jax.errors.InconclusiveDimensionOperation,
    ) as error:
        raise ConfigError(
            f"a model with the head {head.name} cannot be exported for any number of patches "
            f"({str(error).splitlines()[0]}); transmil and transformer cannot, all others can"
        ) from error


def _stablehlo(function: Callable[..., Any], inputs: _Inputs) -> bytes:
    (size,) = jax_export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((size, *shape), dtype) for shape, dtype in inputs]
    with attention.unfused():
        exported = jax_export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    return bytes(exported.serialize())


def _onnx() -> _Serialise:
    try:
        import jax2onnx
    except ImportError as error:
        raise ConfigError(
            "ONNX needs jax2onnx; install it: pip install 'lrmil_jax[onnx]'"
        ) from error

    def serialise(function: Callable[..., Any], inputs: _Inputs) -> bytes:
        shapes = [jax.ShapeDtypeStruct(("N", *shape), dtype) for shape, dtype in inputs]
        with tempfile.TemporaryDirectory() as folder, attention.one_form():
            path = Path(folder) / "piece.onnx"
            jax2onnx.to_onnx(function, shapes, return_mode="file", output_path=str(path))
            return path.read_bytes()

    return serialise


def main(arguments: Sequence[str] | None = None, prog: str = "lrmil convert") -> int:
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
