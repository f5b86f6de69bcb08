"""`lrmil doctor`: whether this machine and installation can run, on one screen.

A line is "ok", "note" (it runs, something is missing that some need) or "BROKEN" (it does not run),
and what is not ok says what to do.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rich.console
import rich.table
import rich.text

import lrmil_jax
from lrmil_jax import processes
from lrmil_jax.errors import UserError, one_line

OK, NOTE, BROKEN = "ok", "note", "BROKEN"
_GIB = 2**30
_SIDE = 1024  # of the matrices
_TILES = 64  # of the slide that is decoded, 256 px each
_NEEDED = (3, 11)
# Extras of pyproject.toml that are no reader and no device: what each imports, what it is for.
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "beam": (("apache_beam",), "slides by Flink, Spark or Dataflow"),
    "dicom": (("pydicom",), "DICOM series of several files"),
    "highdicom": (("highdicom", "pydicom"), "predictions as DICOM"),
    "mlflow": (("mlflow",), "trainings in MLflow"),
    "onnx": (("jax2onnx", "onnxruntime"), "models as ONNX"),
    "serve": (("fastapi", "prometheus_client", "python_multipart", "uvicorn"), "lrmil serve"),
    "spatialdata": (("spatialdata",), "predictions for LazySlide"),
    "storage": (("fsspec", "s3fs", "gcsfs"), "slides in buckets"),
    "torch": (("torch",), ".bin, .pt and .pth files"),
    "xlsx": (("openpyxl",), "labels in Excel"),
}
_FILES = 4096  # open at once: one shard a slide, and those of the libraries


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: what was looked at, its state (`OK`, `NOTE` or `BROKEN`), what is there."""

    name: str
    state: str
    text: str


def main() -> int:
    """Prints one line a thing looked at; the exit status is 1 if one that is needed is broken."""
    findings = []
    for name, look in _LOOKS.items():
        findings += _attempt(name, look)
    console = rich.console.Console(highlight=False, markup=False, emoji=False)
    console.print(table(findings))
    broken = [finding.name for finding in findings if finding.state == BROKEN]
    console.print(f"Broken: {', '.join(broken)}." if broken else "All that is needed works.")
    return 1 if broken else 0


def _attempt(name: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a look finds; whatever goes wrong in it is a finding too."""
    try:
        return list(look())
    except Exception as error:  # of any library, driver or file system
        return [Finding(name, BROKEN, one_line(error))]


def table(findings: list[Finding]) -> rich.table.Table:
    """A row a finding, at most 80 columns wide."""
    listing = rich.table.Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for wraps in (False, False, True):
        listing.add_column(no_wrap=not wraps, overflow="fold")
    styles = {OK: "green", NOTE: "yellow", BROKEN: "bold red"}
    for finding in findings:
        state = rich.text.Text(finding.state, style=styles[finding.state])
        listing.add_row(finding.name, state, finding.text)
    return listing


def _software() -> Iterator[Finding]:
    version = platform.python_version()
    fits = sys.version_info[:2] >= _NEEDED
    advice = "" if fits else f"; Python {'.'.join(map(str, _NEEDED))} or later is needed"
    yield Finding("Python", OK if fits else BROKEN, f"{version} on {platform.platform()}{advice}")
    yield Finding("lrmil_jax", OK, f"{lrmil_jax.__version__} in {Path(lrmil_jax.__file__).parent}")


def _devices() -> Iterator[Finding]:
    import jax

    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "flax")]
    yield Finding("JAX", OK, ", ".join(versions))
    devices = jax.devices()
    kinds = {device.device_kind for device in devices}
    text = f"{len(devices)} x {', '.join(sorted(kinds))} ({jax.default_backend()})"
    driver = Path("/proc/driver/nvidia/version")
    if driver.is_file():
        text += f"; driver {_driver(driver.read_text(encoding='utf-8'))}"
        if jax.default_backend() == "cpu":
            advice = "a GPU is there but unused: pip install 'lrmil_jax[cuda]'"
            yield Finding("devices", NOTE, f"{text}; {advice}")
            return
    yield Finding("devices", OK, text)


def _driver(text: str) -> str:
    """The version out of the NVIDIA driver's own line."""
    words = [word for word in text.split() if word[:1].isdigit() and "." in word]
    return words[0] if words else "unknown"


def _matmul() -> Iterator[Finding]:
    """A product of matrices beside NumPy's, and its speed."""
    import jax
    import jax.numpy as jnp

    left, right = np.random.default_rng(0).standard_normal((2, _SIDE, _SIDE), np.float32)
    multiply = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    result = np.asarray(multiply(left, right))
    off = float(np.abs(result - left @ right).max())
    arrays = [jax.device_put(array) for array in (left, right)]
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.5:
        multiply(*arrays).block_until_ready()
        count += 1
    speed = count * 2 * _SIDE**3 / (time.perf_counter() - start) / 1e9
    if not off < 1e-2:
        yield Finding("computing", BROKEN, f"a product of matrices is off by {off:.3g}; the device "
                      "or its driver computes wrongly")  # fmt: skip
        return
    yield Finding("computing", OK, f"{speed:.0f} GFLOP/s in float32, equal to NumPy's")


def _readers() -> Iterator[Finding]:
    from lrmil_jax.slides import formats, readers

    kinds = [kind for kind in vars(formats).values() if isinstance(kind, formats.Format)]
    for name in readers.READERS:
        read = [kind.name for kind in kinds if name in kind.readers and kind is not formats.UNKNOWN]
        if readers.installed(name):
            yield Finding(name, OK, ", ".join(read))
            continue
        only = [k.name for k in kinds if k.readers == (name,)]
        needed = f" for {', '.join(only)}" if only else ": nothing depends on it"
        yield Finding(name, NOTE, f"not installed{needed}; {readers.install(name)}")


def _extras() -> Iterator[Finding]:
    """What is optional and there, and what is not, with the command that installs it."""
    missing = [
        name
        for name, (modules, _) in EXTRAS.items()
        if any(importlib.util.find_spec(module) is None for module in modules)
    ]
    installed = [name for name in EXTRAS if name not in missing]
    if installed:
        yield Finding("extras", OK, ", ".join(installed))
    if missing:
        listed = ", ".join(f"{name} ({EXTRAS[name][1]})" for name in missing)
        yield Finding("extras", NOTE, f"not installed: {listed}; pip install 'lrmil_jax[NAME]'")


def _decoding() -> Iterator[Finding]:
    """A slide written, opened and decoded."""
    import tifffile

    from lrmil_jax import slides

    side = 256 * int(_TILES**0.5)
    ramp = np.linspace(60, 250, side, dtype=np.float32)
    pixels = np.broadcast_to(ramp[:, None, None], (side, side, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.tif"
        tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="jpeg",
                         resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
        start = time.perf_counter()
        with slides.open_slide(path) as slide:
            decoded = slide.read((0, 0), side, side)
        seconds = time.perf_counter() - start
    off = float(np.abs(decoded.astype(np.int16) - pixels).max())
    if off > 16:
        advice = "imagecodecs decodes wrongly: pip install --force-reinstall imagecodecs"
        yield Finding("decoding", BROKEN, f"a JPEG slide is off by {off:.0f} of 255; {advice}")
        return
    yield Finding("decoding", OK, f"{_TILES / seconds:,.0f} tiles/s of 256 px, JPEG, one thread")


def _machine() -> Iterator[Finding]:
    free = {name: shutil.disk_usage(path).free / _GIB for name, path in
            {"here": Path.cwd(), "temporary": Path(tempfile.gettempdir())}.items()}  # fmt: skip
    low = min(free.values()) < 1
    text = ", ".join(f"{gib:,.1f} GiB {name}" for name, gib in free.items())
    yield Finding("disk", BROKEN if low else OK, f"free: {text}{'; free some' if low else ''}")
    total, spare = (size / _GIB for size in processes.usable_memory())
    low = spare < 2
    advice = "; a run needs 2 GiB and more" if low else ""
    text = f"{total:,.1f} GiB, {spare:,.1f} GiB of it free{advice}"
    yield Finding("memory", NOTE if low else OK, text)
    cores, of_machine = processes.usable_cores(), os.cpu_count()
    yield Finding("threads", OK, f"{cores} of {of_machine} cores may be used")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    few = limit != resource.RLIM_INFINITY and limit < _FILES
    shown = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
    advice = "; a run keeps one open a slide: raise it (ulimit -n)" if few else ""
    yield Finding("open files", NOTE if few else OK, f"{shown} at once{advice}")


def _cache() -> Iterator[Finding]:
    from lrmil_jax import programs

    folder, reason = programs.location()
    if reason is not None:
        advice = "every start compiles anew: set JAX_COMPILATION_CACHE_DIR to a folder of your own"
        yield Finding("cache", NOTE, f"{reason}; {advice}")
        return
    yield Finding("cache", OK, f"compiled programs in {folder}")


def _package() -> Iterator[Finding]:
    from lrmil_jax import config_files
    from lrmil_jax.encoders import pretrained

    names = config_files.names()
    try:
        pretrained.locate("shipped:procedural")
    except UserError as error:
        yield Finding("package", BROKEN, f"{error}; install lrmil_jax again")
        return
    state, advice = (OK, "") if names else (BROKEN, "; install lrmil_jax again")
    yield Finding("package", state, f"{len(names)} configs and its own weights are there{advice}")


_LOOKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "software": _software,
    "package": _package,
    "JAX": _devices,
    "computing": _matmul,
    "decoding": _decoding,
    "readers": _readers,
    "extras": _extras,
    "machine": _machine,
    "cache": _cache,
}
