"""README.md and docs/: links lead to something, every page is reached, and what pages say of the
program (its sentences, functions, keys, examples) is so."""

import ast
import functools
import re
import types
from pathlib import Path

import pytest
import yaml

from lrmil_jax import config as configuration
from lrmil_jax import encoders
from lrmil_jax.heads import registry
from tests.heads import common
from tests.heads import test_heads as suite

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
_OF_CODE = re.compile(r"\[`([\w.]+)`\]\(([^)]+\.py)\)")
_QUOTED = re.compile(r"^\| `([^`]+)` \|.*\|.*\|$", re.MULTILINE)


def targets(page):
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    return [(page.parent / link).resolve() for link in links if "://" not in link]


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_links(page):
    assert [str(target) for target in targets(page) if not target.exists()] == []


def test_readme_leads_to_every_page():
    assert set(PAGES[1:]) <= set(targets(PAGES[0]))
    assert set(NOTEBOOKS) <= set(targets(DOCS / "python.md"))


def test_the_site_has_every_page():
    site = yaml.safe_load((DOCS / "site/mkdocs.yml").read_text())
    pages = re.findall(r"'([^']+\.md)'", str(site["nav"]))
    names = ["index.md", *(f"{page.stem}.md" for page in [*PAGES[1:], *NOTEBOOKS])]
    assert sorted(pages) == sorted(names)


@functools.cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def defined(path):
    """Names of a file's functions and classes, and `Class.method` of its methods."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{one.name}" for one in node.body if hasattr(one, "name")}
    return found


@pytest.mark.parametrize("page", ["methods.md", "extending.md"])
def test_functions_that_a_page_names_are_in_the_files_that_it_names(page):
    named = _OF_CODE.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(named) > 15
    assert [one for one in named if one[0] not in defined((DOCS / one[1]).resolve())] == []


@pytest.mark.parametrize("page", ["methods.md", "troubleshooting.md", "extending.md"])
def test_keys_that_a_page_names_are_keys(page):
    flat = configuration.flatten(configuration.default())
    blocks = "|".join({key.partition(".")[0] for key in flat if "." in key})
    text = (DOCS / page).read_text(encoding="utf-8")
    named = re.findall(rf"(?:`|--config\.|set )((?:{blocks})\.[a-z_]+)(?![\w.])", text)
    assert len(named) > 3
    assert set(named) - set(flat) == set()


def texts():
    """All texts of the package's code, without what is put into them."""
    for path in sorted((ROOT / "lrmil_jax").rglob("*.py")):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.JoinedStr):
                yield "...".join(one.value for one in node.values if isinstance(one, ast.Constant))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_sentences_that_troubleshooting_quotes_are_said():
    """The words between the `...` of a quote stand in one text of the code, in their order."""
    quoted = _QUOTED.findall((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(quoted) >= 40
    said = "\0".join(texts())
    missing = []
    for quote in quoted:
        parts = [part for part in quote.split("...") if part.strip()]
        assert max(map(len, parts)) > 12, f"{quote} could be anything"
        if not re.search("[^\0]*?".join(map(re.escape, parts)), said):
            missing.append(quote)
    assert missing == []


def examples(page, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


@pytest.fixture
def own_head(monkeypatch):
    """The head of extending.md, registered, as the suite of heads asks for it."""
    module = types.ModuleType("linear")
    exec(examples("extending.md")[0], module.__dict__)
    monkeypatch.setattr(
        registry, "HEADS", {**registry.HEADS, "linear_attention": module.LinearAttention}
    )
    monkeypatch.setattr("lrmil_jax.heads.HEADS", registry.HEADS)
    batch = common.bags_of()
    head = common.create("linear_attention")
    return head, common.init(head, *batch), *batch


def test_the_head_of_the_page_passes_the_suite(own_head, tmp_path):
    for asked in (
        suite.test_shapes_and_types,
        suite.test_padding_content_does_not_matter,
        suite.test_order_of_rows,
        suite.test_empty_bag_is_finite,
        suite.test_every_parameter_learns,
    ):
        asked(own_head)
    suite.test_bf16_is_close("linear_attention", own_head)
    suite.test_saved_classifiers_say_the_same(tmp_path, "linear_attention", own_head)
    assert registry.parse_options("linear_attention", ["temperature=0.5"]) == {"temperature": 0.5}


def test_the_encoder_of_the_page_is_one(tmp_path):
    path = tmp_path / "my_encoder.py"
    path.write_text(examples("extending.md")[1])
    assert encoders.create(str(path)).px == encoders.transform(str(path)).px == 224
