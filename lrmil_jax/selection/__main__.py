"""`python -m lrmil_jax.selection FILE`: a description file checked, and as a text tower sees it."""

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
from jaxtyping import Float

from lrmil_jax.arguments import Parser
from lrmil_jax.encoders import TextTower, language, pretrained, registry, text
from lrmil_jax.errors import ConfigError, DataError, UserError, WeightsError
from lrmil_jax.selection.text_bank import POWERS, TextBank

# A rule of thumb: class embeddings nearer than this differ by an angle of less than 8 degrees.
ALIKE = 0.99
TEXT_FILE = "text.safetensors"
_PROGRAM = "python -m lrmil_jax.selection"


def parse(arguments: Sequence[str] | None = None, prog: str = _PROGRAM) -> argparse.Namespace:
    """The command line of a program of this name: file, encoder, weights, tokenizer.

    Raises:
      ConfigError: an unknown flag, or a file that is not named.
    """
    parser = Parser(
        prog=prog,
        description="Checks a file of class descriptions. With a text tower also how many tokens "
        "each sentence has, and whether the tower tells the classes apart.",
    )
    parser.add_argument("file", help="a TOML file, or shipped:NAME")
    parser.add_argument("--encoder", metavar="NAME", help="image encoder that the tower belongs to")
    parser.add_argument(
        "--weights", metavar="FILE", help="its weights, its text tower's, or shipped:NAME"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="file or folder, for a published tower; by default the folder of the weights",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    """Prints what `parse`'s file says; 1 if anything is not in order, which stderr names."""
    console = rich.console.Console(markup=False, emoji=False, highlight=False)
    try:
        options = parse(arguments, prog)
        bank = TextBank.load(options.file)
        console.print(overview(bank))
        tower = load_tower(options.encoder, options.weights, options.tokenizer)
        if tower is not None:
            _show_tower(console, bank, tower)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def load_tower(
    encoder: str | None, weights: str | None, tokenizer: str | None
) -> TextTower | language.Tower | None:
    """The text tower that the command line names; None if it names none.

    Args:
      encoder: name of the image encoder; needed for a published tower only.
      weights: file of the image tower or of the text tower, or "shipped:NAME".
      tokenizer: file or folder of a published tower's tokenizer; None: the folder of the weights.

    Raises:
      ConfigError: an unknown encoder, or arguments that do not go together.
      WeightsError: a file is missing or broken, or no text tower lies beside the image tower.
    """
    if weights is None:
        if encoder is not None or tokenizer is not None:
            raise ConfigError("--encoder and --tokenizer mean nothing without --weights FILE")
        return None
    path = pretrained.locate(weights)
    if encoder is not None:
        registry.spec(encoder)
    if encoder in language.TEXT_SIZES:
        return language.load(encoder, path, tokenizer=tokenizer or path.parent)
    if tokenizer is not None:
        raise ConfigError(
            "--tokenizer is for a published text tower; name its encoder by --encoder, one of "
            f"{', '.join(language.TEXT_SIZES)}"
        )
    return _trained_tower(path)


def _trained_tower(path: Path) -> TextTower:
    """A tower of this program's, from its file or from the image tower's beside it."""
    if pretrained.open_tensors(path)[1].get("format") == text.FORMAT:
        return TextTower.load(path)
    text_file = path.with_name(TEXT_FILE)
    if not text_file.is_file():
        raise WeightsError(
            f"{path} is no text tower, and there is no {text_file}; give --weights a file with a "
            "text tower, and --encoder too if it is a published one's "
            f"({', '.join(language.TEXT_SIZES)})"
        )
    return TextTower.load(text_file, encoder_hash=pretrained.weights_hash(path))


def _show_tower(
    console: rich.console.Console, bank: TextBank, tower: TextTower | language.Tower
) -> None:
    context = tower.sizes["tokens"]
    counts = count_tokens(bank, tower)
    console.print(token_table(bank, counts, context))
    check_tokens(bank, counts, context)
    by_power = cosines(bank, tower)
    console.print(cosine_table(bank, by_power))
    for line in warn_alike(bank, by_power):
        console.print(f"Warning: {line}", style="yellow")


def overview(bank: TextBank) -> rich.table.Table:
    """A row a class: its sentences of each power, the longest one, how many sources."""
    table = rich.table.Table(
        title=bank.about.get("task", bank.path.name),
        caption=_caption(bank),
        caption_justify="left",
        box=rich.box.SIMPLE_HEAD,
    )
    for name, side in (("class", "left"), *((power, "right") for power in POWERS)):
        table.add_column(name, justify=side)
    table.add_column("longest sentence", overflow="fold")
    for name in ("words", "sources"):
        table.add_column(name, justify="right")
    for name, description in bank.classes.items():
        longest = max(description.sentences("both"), key=lambda line: len(line.split()))
        numbers = [str(len(description.sentences(power))) for power in POWERS]
        words, sources = str(len(longest.split())), str(len(description.source) or "none")
        table.add_row(name, *numbers, rich.text.Text(longest), words, sources)
    return table


def _caption(bank: TextBank) -> str:
    """Where the file is, its templates, and who reviewed it when."""
    date = f" ({bank.about['date']})" if "date" in bank.about else ""
    lines = [
        f"reviewed by: {bank.about.get('reviewed_by', 'nobody named')}{date}",
        f"templates: {', '.join(map(repr, bank.templates))}",
        *([f"note: {bank.about['note']}"] if "note" in bank.about else []),
        f"file: {bank.path}",
    ]
    return "\n".join(lines)


def count_tokens(bank: TextBank, tower: TextTower | language.Tower) -> dict[str, dict[str, int]]:
    """Tokens by class and sentence, start and end among them, in the template that has most.

    Raises:
      DataError: a sentence has a special token of the tokenizer.
    """
    counts: dict[str, dict[str, int]] = {}
    for name, description in bank.classes.items():
        counts[name] = {}
        for sentence in description.sentences("both"):
            lines = [template.replace("{}", sentence) for template in bank.templates]
            try:
                # No limit here: a sentence that is too long is counted too.
                _, mask = tower.tokenizer.encode(lines, limit=sys.maxsize)
            except DataError as error:
                raise DataError(f"{bank.path}, class {name}: {error}") from error
            counts[name][sentence] = int(mask.sum(1).max())
    return counts


def check_tokens(bank: TextBank, counts: Mapping[str, Mapping[str, int]], context: int) -> None:
    """Refuses sentences that the tower cannot read to their end.

    Raises:
      DataError: names the first one and says how many there are.
    """
    too_long = [
        (name, sentence, count)
        for name, of_class in counts.items()
        for sentence, count in of_class.items()
        if count > context
    ]
    if too_long:
        name, sentence, count = too_long[0]
        suffix = f", and {len(too_long) - 1} more after it" if len(too_long) > 1 else ""
        raise DataError(
            f"{bank.path}, class {name}: {sentence!r} has {count} tokens in its longest template, "
            f"more than the {context} that the text tower reads; shorten it{suffix}"
        )


def token_table(
    bank: TextBank, counts: Mapping[str, Mapping[str, int]], context: int
) -> rich.table.Table:
    """A row a sentence: its tokens, of those that the tower reads."""
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for name in ("class", "power", "sentence"):
        table.add_column(name, overflow="fold")
    table.add_column(f"tokens of {context}", justify="right")
    for name, description in bank.classes.items():
        for power in POWERS:
            for sentence in description.sentences(power):
                count = counts[name][sentence]
                style = "bold red" if count > context else None
                table.add_row(name, power, rich.text.Text(sentence), str(count), style=style)
        table.add_section()
    return table


def cosines(
    bank: TextBank, tower: TextTower | language.Tower
) -> dict[str, Float[np.ndarray, "C C"]]:
    """Cosines between classes' embeddings, by the power whose sentences all classes have."""
    by_power = {}
    for power in (*POWERS, "both"):
        if all(description.sentences(power) for description in bank.classes.values()):
            embedding = bank.embed(tower, power).embedding
            by_power[power] = embedding @ embedding.T
    return by_power


def cosine_table(
    bank: TextBank, by_power: Mapping[str, Float[np.ndarray, "C C"]]
) -> rich.table.Table:
    """A row for two classes: the cosine of their embeddings at each power."""
    table = rich.table.Table(title="cosine between classes", box=rich.box.SIMPLE_HEAD)
    table.add_column("classes", overflow="fold")
    for power in by_power:
        table.add_column(power, justify="right")
    for (i, first), (j, second) in itertools.combinations(enumerate(bank.classes), 2):
        table.add_row(
            f"{first}, {second}", *(f"{cosine[i, j]:.3f}" for cosine in by_power.values())
        )
    return table


def warn_alike(bank: TextBank, by_power: Mapping[str, Float[np.ndarray, "C C"]]) -> list[str]:
    """One line for two classes that are nearly the same to the tower."""
    lines = []
    for (i, first), (j, second) in itertools.combinations(enumerate(bank.classes), 2):
        powers = [power for power, cosine in by_power.items() if cosine[i, j] > ALIKE]
        if powers:
            lines.append(
                f"to this tower {first} and {second} are nearly the same (cosine above {ALIKE}) in "
                f"the sentences of power {', '.join(powers)}; say more of what tells them apart, "
                "or use a tower that knows such tissue"
            )
    return lines


if __name__ == "__main__":
    sys.exit(main())
