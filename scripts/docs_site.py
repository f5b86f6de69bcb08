"""Makes the documentation a site of plain files: README.md, docs/ and its notebooks, every link
checked.

pip install -e .[docs]
python scripts/docs_site.py [--output output/docs] [--source URL]
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_FENCES = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?P<shown>!?\[(?P<text>[^\]]*)\])\((?P<target>[^)#\s]+)(?P<rest>[^)]*)\)")
_START = "index.md"


def stage(folder: Path, *, root: Path = ROOT, source: str | None = None) -> None:
    """Copies all that MkDocs reads, links of pages to each other as they are there.

    Args:
      folder: to fill; it must not exist.
      root: of the project.
      source: address under which the project's files are found; None: files of the code are
        named, without a link.
    """
    shutil.copytree(root / "docs/site", folder)
    pages = folder / "docs"
    pages.mkdir()
    for path in [root / "README.md", *sorted((root / "docs").iterdir())]:
        if path.suffix == ".md":
            text = relinked(path.read_text(encoding="utf-8"), path, root=root, source=source)
            (pages / _name(path, root)).write_text(text, encoding="utf-8")
        elif path.is_file():
            shutil.copy(path, pages)
    for path in sorted((root / "docs/notebooks").glob("*.ipynb")):
        text = relinked(notebook_page(path, pages), path, root=root, source=source)
        (pages / _name(path, root)).write_text(text, encoding="utf-8")


def notebook_page(path: Path, pictures: Path) -> str:
    """A notebook as Markdown: its text, its code, and what is stored of its output.

    Args:
      path: of the notebook.
      pictures: folder for the pictures that it shows, NOTEBOOK_1.png and so on.
    """
    parts, shown = [], 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = ""
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                shown += 1
                name = f"{path.stem}_{shown}.png"
                (pictures / name).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![Output of the cell above]({name})")
            else:
                printed += "".join(output.get("text", data.get("text/plain", ""))).rstrip() + "\n"
        if printed:
            parts.append(f"```\n{printed}```")
    return "\n\n".join(parts) + "\n"


def _name(path: Path, root: Path) -> str:
    """What a page or picture is called in the site."""
    if path.suffix == ".ipynb":
        return f"{path.stem}.md"
    return _START if path == root / "README.md" else path.name


def relinked(text: str, page: Path, *, root: Path, source: str | None) -> str:
    """A page's text with links as the site has them; code in fences stays as it is."""

    def link(found: re.Match) -> str:
        target = found["target"]
        if "://" in target:
            return found[0]
        path = Path(os.path.normpath(page.parent / target))
        if not path.exists():
            return found[0]  # MkDocs tells it
        if path == root / "README.md" or path.parent == root / "docs" or path.suffix == ".ipynb":
            return f"{found['shown']}({_name(path, root)}{found['rest']})"
        inside = path.relative_to(root).as_posix()
        if source is not None:
            return f"{found['shown']}({source.rstrip('/')}/{inside})"
        text = found["text"]
        return f"`{inside}`" if text.strip("`/") == inside else f"{text} (`{inside}`)"

    parts = _FENCES.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def main() -> int:
    """Builds the site; the exit status is MkDocs', not 0 where a link leads nowhere."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "output/docs", help="of the site")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the project")
    parser.add_argument("--source", help="address of the project's files, for links to code")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "site"
        stage(folder, root=options.root.resolve(), source=options.source)
        command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
        command += ["--config-file", folder / "mkdocs.yml", "--site-dir", options.output.resolve()]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
