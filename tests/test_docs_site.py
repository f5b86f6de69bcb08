"""The documentation as a site: links as it has them, and MkDocs' own strict build."""

import base64
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/docs_site.py"


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("docs_site", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = """[home](../README.md), [heads](heads.md#a-head), ![drawn](tissue.png "all")
[`Head`](../lrmil_jax/heads/base.py), [lrmil_jax/config.py](../lrmil_jax/config.py)
[elsewhere](https://example.org/a.md)
```
[code](../README.md)
```
"""
COMMON = """[home](index.md), [heads](heads.md#a-head), ![drawn](tissue.png "all")
{}
[elsewhere](https://example.org/a.md)
```
[code](../README.md)
```
"""


@pytest.mark.parametrize(
    ("source", "of_code"),
    [
        (None, "`Head` (`lrmil_jax/heads/base.py`), `lrmil_jax/config.py`"),
        (
            "https://example.org/tree/",
            "[`Head`](https://example.org/tree/lrmil_jax/heads/base.py), "
            "[lrmil_jax/config.py](https://example.org/tree/lrmil_jax/config.py)",
        ),
    ],
)
def test_links_of_a_page(site, source, of_code):
    found = site.relinked(PAGE, ROOT / "docs/page.md", root=ROOT, source=source)
    assert found == COMMON.format(of_code)


def test_links_of_the_start_page(site):
    text = "[a](docs/heads.md), ![b](docs/curve.png), [c](LICENSE)"
    found = site.relinked(text, ROOT / "README.md", root=ROOT, source=None)
    assert found == "[a](heads.md), ![b](curve.png), c (`LICENSE`)"


def test_notebooks_are_pages_with_their_output(site, tmp_path):
    png = base64.b64encode(b"a picture").decode()
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "[next](b.ipynb), [page](../heads.md)"]},
        {"cell_type": "code", "source": ["show()"], "outputs": [
            {"output_type": "stream", "text": ["one\n", "two\n"]},
            {"output_type": "display_data", "data": {"text/plain": ["<I>"], "image/png": png}},
        ]},
    ]  # fmt: skip
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    page = site.notebook_page(path, tmp_path)
    assert page == (
        "# Title\n[next](b.ipynb), [page](../heads.md)\n\n```python\nshow()\n```\n\n"
        "![Output of the cell above](a_1.png)\n\n```\none\ntwo\n```\n"
    )
    assert (tmp_path / "a_1.png").read_bytes() == b"a picture"
    beside = ROOT / "docs/notebooks/read_attention.ipynb"
    linked = "[page](../heads.md), [next](predict_a_slide.ipynb)"
    found = site.relinked(linked, beside, root=ROOT, source=None)
    assert found == "[page](heads.md), [next](predict_a_slide.md)"


def build(root, output):
    command = [sys.executable, SCRIPT, "--root", root, "--output", output]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    root = tmp_path / "project"
    root.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("docs", ".git"):
            (root / path.name).symlink_to(path)
    shutil.copytree(ROOT / "docs", root / "docs")
    return root


@pytest.mark.slow
def test_every_page_is_built_and_nothing_comes_from_elsewhere(copy, tmp_path):
    result = build(copy, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "out").glob("*.html")}
    sources = [*(copy / "docs").glob("*.md"), *(copy / "docs/notebooks").glob("*.ipynb")]
    assert {path.stem for path in sources} | {"index"} <= set(pages)
    for text in pages.values():
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*", text)
        assert not [tag for tag in loaded if "//" in tag]
    assert pages["methods"].count("<math ") > 20
    assert not re.search(r"formula\d", pages["methods"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("[x](nothing.md)", "nothing.md"),
        ("[x](../lrmil_jax/nothing.py)", "nothing.py"),
        ("[x](heads.md#nothing)", "nothing"),
        (r"$\nothing x$", "formula is not known"),
    ],
)
def test_what_leads_nowhere_ends_the_build(copy, tmp_path, addition, said):
    page = copy / "docs/methods.md"
    page.write_text(f"{page.read_text()}\n{addition}\n")
    result = build(copy, tmp_path / "out")
    assert result.returncode != 0
    assert said in result.stderr


@pytest.mark.slow
def test_a_page_that_the_menu_has_not_ends_the_build(copy, tmp_path):
    (copy / "docs/more.md").write_text("# More\n")
    result = build(copy, tmp_path / "out")
    assert result.returncode != 0
    assert "more.md" in result.stderr
