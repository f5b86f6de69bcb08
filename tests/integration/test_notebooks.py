"""docs/notebooks: every cell runs, and prints what is stored below it but for the figures."""

import contextlib
import functools
import io
import json
import re
import subprocess
import sys
import tempfile

import matplotlib as mpl
import pytest

from tests.integration import runs

FOLDER = runs.ROOT / "docs/notebooks"
_COMMAND = re.compile(r"^([ ]*)!((?:.*\\\n)*.*)$", re.MULTILINE)


def shell(cache, command):
    """A line of a notebook that begins with `!`; what it prints has times and is not compared."""
    script = f'lrmil() {{ "{sys.executable}" -m lrmil_jax.command "$@"; }}\n{command}'
    environment = {**runs.environment(cache), "PYTHONPATH": str(runs.ROOT)}
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def shape(text):
    """Text without its figures, and without what each of the installed readers has to say."""
    return re.sub(r"\d+(\.\d+)?", "0", re.sub(r"\(tifffile: .*?\)", "()", text))


def check(name, cache):
    """Runs the code cells of a notebook in one namespace, as Jupyter does."""
    path, names = FOLDER / f"{name}.ipynb", {"_shell": functools.partial(shell, cache)}
    assert path.stat().st_size < 300_000
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in (one for one in cells if one["cell_type"] == "code"):
        source, printed = "".join(cell["source"]), io.StringIO()
        code = _COMMAND.sub(lambda found: f"{found[1]}_shell({found[2]!r})", source)
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{name}.ipynb", "exec"), names)
        streams = [one for one in cell["outputs"] if one["output_type"] == "stream"]
        assert {one["name"] for one in streams} <= {"stdout"}, "warnings are stored"
        stored = "".join("".join(one["text"]) for one in streams)
        if code == source:
            assert shape(printed.getvalue()) == shape(stored), source
        else:
            assert shape(stored).endswith(shape(printed.getvalue())), source


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The temporary folder in which notebooks work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "lrmil_jax_notebooks"
    folder.mkdir()
    with mpl.rc_context({"backend": "agg"}):
        yield folder


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["predict_a_slide", "read_attention"])
def test_notebooks_on_a_model_that_is_there(name, folder, finished):
    (folder / "first").symlink_to(finished.workdir)
    check(name, finished.cache)


@pytest.mark.slow
def test_the_notebook_that_trains(folder, cache):
    check("train_on_a_folder", cache)
    assert (folder / "run/model/README.md").is_file()
