"""Why slides cannot be used: one sentence a reason, however many slides have it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAMED = 5  # slides that a sentence names
_OF_PATH = re.compile(r"\S*[/\\]\S*")


def sentences(slides: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each reason why slides cannot be used: its first slide's own, and who else.

    Args:
      slides: `slide_id` and `reason` of slides that failed.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for slide in slides:
        groups.setdefault(cause(slide["slide_id"], slide["reason"]), []).append(slide)
    return [
        f"slide {first['slide_id']}: {first['reason']}{_others(rest)}"
        for first, *rest in groups.values()
    ]


def _others(slides: Sequence[Mapping[str, Any]]) -> str:
    if not slides:
        return ""
    names = ", ".join(slide["slide_id"] for slide in slides[:_NAMED])
    more = " ..." if len(slides) > _NAMED else ""
    return f" (and {len(slides)} more for the same reason: {names}{more})"


def cause(slide_id: str, reason: str) -> str:
    """A reason without the slide's name and without paths."""
    return _OF_PATH.sub("", reason).replace(slide_id, "")
