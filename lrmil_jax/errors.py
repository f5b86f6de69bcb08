"""Mistakes that a user can make and mend: one sentence each, shown without a traceback."""


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one sentence."""


class ConfigError(UserError):
    """A config key is unknown, of the wrong type, or out of its range."""


class SlideError(UserError):
    """A slide cannot be used: missing, unreadable, without um/px, too small, without tissue."""


class TileError(SlideError):
    """One region of an otherwise good slide cannot be decoded."""


class DataError(UserError):
    """The label CSV, the splits or the stored shards are not usable."""


class WorkdirError(UserError):
    """The working directory belongs to another config, another schema or another run."""


class WeightsError(UserError):
    """A weights file is missing, broken, or does not fit the model."""


class TrainingError(UserError):
    """Training cannot go on; the last good checkpoint is kept."""


def one_line(error: BaseException, most: int = 160) -> str:
    """What another library says, as a part of a sentence: without line breaks, cut at `most`
    characters, and its type where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 3] + "..."
