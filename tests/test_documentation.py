"""README.md and docs/: every link leads to something, and every page is reached from README."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def targets(page):
    links = _LINK.findall(page.read_text(encoding="utf-8"))
    return [(page.parent / link).resolve() for link in links if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    assert [str(target) for target in targets(page) if not target.exists()] == []


def test_readme_leads_to_every_page():
    assert set(PAGES[1:]) <= set(targets(PAGES[0]))
