"""The corpus of damaged and odd slides: `python -m tests.slides.mutations` prints what comes.

The kinds are those that slide readers have met in practice. Of each file either the pixels of its
source must come, over the whole slide and at every level, or one sentence that names the cause.
"""

import collections
import logging
import sys
import tempfile
from pathlib import Path

from tests.slides.corpus import descriptions, outcome, pixels, previews, sources, structure
from tests.slides.corpus.changes import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    *structure.HEADER,
    *structure.DIRECTORIES,
    *structure.FIELDS,
    *previews.PREVIEWS,
    *structure.OTHER_FIELDS,
    *structure.CUTS,
    *pixels.TILES,
    *pixels.COLOURS,
    *descriptions.RESOLUTION,
    *descriptions.DESCRIPTIONS,
    *descriptions.BESIDE,
    *descriptions.XML,
)


def name(mutation: Mutation) -> str:
    """Kind and name, as one word."""
    return f"{mutation.kind.replace(' ', '_')}-{mutation.name}"


def write(mutation: Mutation, folder: Path) -> Path:
    """The mutation's file."""
    path = folder / f"{mutation.name}.tif"
    path.write_bytes(mutation.change(sources.data(mutation.source)))
    return path


def try_out(mutation: Mutation, folder: Path, reader: str = "tifffile") -> str:
    """What comes of a mutation: "pixels equal" or the sentence.

    Raises:
      AssertionError: something else.
    """
    path = write(mutation, folder)
    return outcome.check(path, mutation.source, mutation.wanted, reader=reader)


def main() -> int:
    """Prints a row a mutation as a Markdown table, and the counts by kind."""
    logging.disable(logging.CRITICAL)
    reader = sys.argv[1] if len(sys.argv) > 1 else "tifffile"
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    print("| kind | name | expected | what came |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for mutation in MUTATIONS:
            wanted = type(mutation.wanted).__name__
            try:
                came = try_out(mutation, Path(folder), reader)
                result = "pixels" if wanted == "Pixels" else "sentence"
            except BaseException as error:  # of any type: that is what the table tells
                came = f"WRONG: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                result = "wrong"
            counts[mutation.kind][result] += 1
            print(f"| {mutation.kind} | {mutation.name} | {wanted} | {came.replace('|', '/')} |")
    print("\n| kind | pixels equal | sentence | wrong |\n|---|---|---|---|")
    counts["all"] = sum(counts.values(), collections.Counter())
    for kind, row in counts.items():
        print(f"| {kind} | {row['pixels']} | {row['sentence']} | {row['wrong']} |")
    return int(counts["all"]["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
