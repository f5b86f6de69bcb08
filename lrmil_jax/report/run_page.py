"""`report/index.html`: everything about a run in one file."""

import dataclasses
import html as text_html
from collections.abc import Sequence
from pathlib import Path

from lrmil_jax.report import html, slide_page, table

_Pictures = list[tuple[str, str]]
_FILES = (
    ("table.csv", "every figure of the result table"),
    ("predictions.csv", "test patients, from which all figures can be made again"),
    ("patient_predictions.csv", "the same, a row a patient and not a slide"),
    ("validation.csv", "validation patients, who chose thresholds and temperatures"),
    ("timing.json", "seconds by phase"),
    ("../slides.csv", "every slide with its um/px, patches, status and reason"),
    ("../left_out.csv", "files of the slide folder that no slide is"),
    ("../model/README.md", "the delivered model's card"),
)


@dataclasses.dataclass(kw_only=True)
class Parts:
    """What the page is made of; pictures are file names below the report's folder with captions.

    Attributes:
      title: heading.
      main: name of the model that the run is about.
      rows: of the result table (`results.result_rows`); notes: paragraphs below it.
      cautions: where figures cannot be trusted; about: `overview.section`.
      pictures: of the results; calibration: of it and of decisions; sections: tables of the same.
      attention: cells of attention against lesions, the heading alone without any;
        attention_note: what they are.
      costs, training: of seconds and operations, and of learning curves.
      cards: of slide pages; by_doubt: the worst first; slides: single slides drawn.
    """

    title: str
    main: str
    rows: Sequence[dict]
    notes: Sequence[str]
    cautions: Sequence[str]
    about: str
    pictures: _Pictures
    calibration: _Pictures
    sections: Sequence[tuple[str, Sequence[Sequence[str]]]]
    attention: Sequence[Sequence[str]]
    attention_note: str
    costs: _Pictures
    training: _Pictures
    cards: Sequence[str]
    by_doubt: bool = True
    slides: _Pictures = dataclasses.field(default_factory=list)


def render(parts: Parts, folder: Path) -> str:
    """The whole page; `folder` is where it and its pictures lie."""

    def figures(pictures: _Pictures) -> str:
        return "".join(html.figure(path, caption, folder=folder) for path, caption in pictures)

    tables = "".join(html.heading(name) + html.table(cells) for name, cells in parts.sections)
    lesions = ""
    if len(parts.attention) > 1:
        lesions = html.heading("Attention on test slides with lesion")
        lesions += html.table(parts.attention) + html.paragraph(parts.attention_note, "soft")
    sections = [
        parts.about,
        html.section(
            "Results",
            html.table(table.cells(parts.rows)),
            *(html.paragraph(note, "soft") for note in parts.notes),
            figures(parts.pictures),
        ),
        html.section("Calibration, decisions, subgroups", figures(parts.calibration), tables),
        html.section("What a slide costs", figures(parts.costs)),
        html.section("Slides", _slides(parts), lesions, figures(parts.slides)),
        html.section("Training", figures(parts.training)),
        html.section("Files", _files(folder)),
    ]
    return html.document(
        f"lrmil_jax: {parts.title}",
        f"<h1>{text_html.escape(parts.title)}</h1>",
        html.paragraph(
            headline(next(row for row in parts.rows if row["model"] == parts.main)), "lead"
        ),
        *(html.paragraph(sentence, "warn") for sentence in parts.cautions),
        html.contents(sections),
        *sections,
    )


def headline(row: dict) -> str:
    """A model's row of the table in a sentence."""
    name = row["headline"]
    value = table.interval(row[name], row.get(f"{name}_interval"))
    over = f", mean of {row['folds']} folds" if row["folds"] > 1 else ""
    return (
        f"{row['title']}: {row['headline_title']} {value} (95 % interval) over {row['patients']} "
        f"test patients{over}."
    )


def _slides(parts: Parts) -> str:
    if not parts.cards:
        return ""
    order = ", first those where the model errs or doubts" if parts.by_doubt else ""
    note = (
        f"Pages of single test slides{order}. Colours are attention on one scale for all slides: "
        "grey is the even share, red 16 times that."
    )
    return html.paragraph(note, "soft") + slide_page.cards(parts.cards)


def _files(folder: Path) -> str:
    lines = [
        f"<li>{html.link(name, Path(name).name)}: {text_html.escape(what)}</li>"
        for name, what in _FILES
        if (folder / name).exists() or name.startswith("../model")
    ]
    return f"<ul>{''.join(lines)}</ul>"
