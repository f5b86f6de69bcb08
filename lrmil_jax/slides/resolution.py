"""Microns per pixel: where the value comes from, and whether it can be true.

Nominal magnification is not used for geometry: "20x" slides range from 0.23 to 0.55 um/px.
"""

import math

from lrmil_jax.errors import SlideError

MPP_RANGE = (0.1, 10.0)  # um/px; a conventional 100x objective gives 0.1, a macro camera about 10
OBJECTIVE_FACTOR = 2.0  # largest disagreement with the objective power that is still believed
UM_AT_1X = 10.0  # um/px x objective power on common scanners: 0.5 at 20x, 0.25 at 40x


def resolve_mpp(
    path: object,
    *,
    file_mpp: tuple[float, float] | None,
    objective: float | None,
    override: float | int | None,
) -> tuple[float, str]:
    """Decide a slide's um/px, never silently guessing.

    Args:
      path: the slide, for messages.
      file_mpp: (x, y) um/px as the file states it, None when it states none.
      objective: objective power as the file states it.
      override: the user's value; it wins over the file, and is checked against the range alone.

    Returns:
      (um/px at the finest level, "override" or "file").

    Raises:
      SlideError: missing, outside 0.1 to 10, not square, or against the objective power.
    """
    if override is not None:
        _check_range(path, override, "given for it", "correct the value that you gave")
        return float(override), "override"
    if file_mpp is None:
        raise SlideError(
            f"{path}: the file does not say its um/px; give it in the mpp column of the label CSV "
            "or with mpp=."
        )
    advice = "give the true value in the mpp column of the label CSV or with mpp="
    for value in file_mpp:
        _check_range(path, value, "stated in the file", advice)
    x, y = file_mpp
    if max(x, y) > 1.05 * min(x, y):
        raise SlideError(
            f"{path}: pixels are not square, {x:g} x {y:g} um/px in the file; {advice}."
        )
    mpp = (x + y) / 2
    if objective is not None and math.isfinite(objective) and objective > 0:
        expected = UM_AT_1X / objective
        if max(mpp / expected, expected / mpp) > OBJECTIVE_FACTOR:
            raise SlideError(
                f"{path}: {mpp:g} um/px disagrees with the objective power {objective:g}x (about "
                f"{expected:g} um/px) by more than a factor of {OBJECTIVE_FACTOR:g}; {advice}."
            )
    return float(mpp), "file"


def _check_range(path: object, mpp: float | int, origin: str, advice: str) -> None:
    low, high = MPP_RANGE
    if not low <= mpp <= high:  # also true for NaN
        raise SlideError(
            f"{path}: {mpp:g} um/px, {origin}, is outside {low:g} to {high:g}; {advice}."
        )
