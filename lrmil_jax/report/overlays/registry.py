"""The formats by name. A new one is a module here with `write(path, overlay)` and a line below."""

import dataclasses
import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from lrmil_jax.errors import ConfigError
from lrmil_jax.report.overlays.overlay import Overlay


@dataclasses.dataclass(frozen=True)
class Format:
    """A file that other programs open.

    Attributes:
      module: in this package, whose `write(path, overlay)` makes it; imported when it is used.
      file: its name in the folder of a slide's prediction.
      packages: that it needs and that an extra of this package brings; extra: its name.
    """

    module: str
    file: str
    packages: tuple[str, ...] = ()
    extra: str = ""


FORMATS = {
    "geojson": Format("qupath", "attention.geojson"),
    "ome_tiff": Format("ome_tiff", "attention.ome.tif"),
    "annotation_store": Format("annotation_store", "attention.db"),
    "dicom": Format("parametric_map", "attention.dcm", ("pydicom", "highdicom"), "highdicom"),
    "spatialdata": Format("spatial_data", "attention.zarr", ("spatialdata",), "spatialdata"),
}
DEFAULT = ("geojson",)


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once, if all of them can be written.

    Raises:
      ConfigError: there is no such format, or what it needs is not installed.
    """
    names = tuple(dict.fromkeys(names))
    for name in names:
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"no format of predictions is called {name!r}: did you mean {near}? "
                f"There are {', '.join(FORMATS)}"
            )
        made = FORMATS[name]
        missing = [one for one in made.packages if importlib.util.find_spec(one) is None]
        if missing:
            raise ConfigError(
                f"the format {name} needs {' and '.join(missing)}: "
                f"pip install 'lrmil_jax[{made.extra}]'"
            )
    return names


def write(name: str, path: Path, overlay: Overlay) -> None:
    """Writes one format of `FORMATS`, whole or not at all.

    Raises:
      ConfigError: see `checked`.
      DataError: the overlay cannot be said in this format.
    """
    (name,) = checked([name])
    module = importlib.import_module(f"lrmil_jax.report.overlays.{FORMATS[name].module}")
    module.write(path, overlay)


def paths(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Where each format lies in the folder of a slide's prediction."""
    return {name: folder / FORMATS[name].file for name in names}
