"""A hook of MkDocs: formulas become MathML, which browsers draw without scripts and fonts."""

import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What is code, and may hold dollars, comes before what is a formula.
_PARTS = re.compile(
    r"^```math\n(?P<block>.*?)^```$|(?P<fence>^```.*?^```$)|(?P<code>`[^`\n]+`)|\$(?P<line>[^$\n]+)\$",
    re.MULTILINE | re.DOTALL,
)
_UNKNOWN = re.compile(r"\\[a-zA-Z]+")
_made: dict[str, str] = {}  # by the word that stands in a formula's place


def on_page_markdown(markdown: str, page, **_) -> str:
    """Puts a word in the place of every formula, which Markdown leaves as it is.

    Raises:
      PluginError: a formula has a command that is not known.
    """

    def replaced(found: re.Match) -> str:
        block, line = found["block"], found["line"]
        if block is None and line is None:
            return found[0]
        formula = convert(block or line, display="inline" if block is None else "block")
        if unknown := _UNKNOWN.search(formula):
            raise PluginError(f"{page.file.src_uri}: {unknown[0]} of a formula is not known")
        place = f"formula{len(_made)}placed"
        _made[place] = formula
        return place

    return _PARTS.sub(replaced, markdown)


def on_page_content(html: str, **_) -> str:
    """Puts the formulas in the places of their words."""
    return re.sub(r"formula\d+placed", lambda found: _made[found[0]], html)
