"""The way of the data is the architecture: imports point one way, and stages know no stage."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lrmil_jax

PACKAGE = Path(lrmil_jax.__file__).parent
# From the top to the bottom: whoever stands higher may import what stands lower, never the reverse.
ORDER = (
    *(
        "command",
        "main",
        "flag_rules",
        "serve",
        "verify",
        "doctor",
        "preflight",
        "studies",
        "pipeline",
        "marks",
        "graph",
        "checks",
    ),
    *("stages", "methods", "models", "report", "workspace", "train", "tasks"),
    *("selection", "distill", "interchange", "evals", "heads", "patches", "encoders", "data"),
    *(
        "slides",
        "storage",
        "points",
        "command_help",
        "yaml_config",
        "config_files",
        "config_keys",
        "config",
        "arrays",
        "types",
        "places",
        "programs",
        "cluster",
        "processes",
        "processor",
        "workers",
        "progress",
        "torch_files",
        "files",
        "arguments",
    ),
    "errors",
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path):
    if path == PACKAGE / "evals/__main__.py":  # a program that asks tasks and report too
        return "main"
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path):
    """Modules of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "lrmil_jax":
            found |= {f"lrmil_jax.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lrmil_jax."):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    mine = ORDER.index(room(path))
    for module in imported(path):
        other = module.split(".")[1]
        if other in ORDER and other != ORDER[mine]:  # `lrmil_jax.load_model` is for users
            assert ORDER.index(other) > mine, f"{path.name} imports {module}, which stands above it"


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == set(ORDER)


def test_no_stage_imports_a_stage():
    for path in (PACKAGE / "stages").glob("*.py"):
        assert not [module for module in imported(path) if module.startswith("lrmil_jax.stages")]


WITHOUT_JAX = (
    *("command", "main", "data.regions", "slides.synthetic", "report.prediction"),
    *("patches.beside", "models.visit"),  # what reads slides for a prediction
    "interchange.slides",
    "interchange.take_over",
)


@pytest.mark.parametrize("module", WITHOUT_JAX)
def test_workers_and_a_mistyped_flag_wait_for_no_jax(module):
    # Each process imports the program that was started.
    slow = {"jax", "pandas"} if module in ("command", "main") else {"jax"}
    code = f"import sys, lrmil_jax.{module}, lrmil_jax.processes; print({slow} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
