"""Microns per pixel: where the value comes from, and whether it can be true.

Nominal magnification is not used for geometry: "20x" slides range from 0.23 to 0.55 um/px.
"""

import math

from lrmil_jax.errors import SlideError

MPP_RANGE = (0.1, 10.0)  # um/px; a conventional 100x objective gives 0.1, a macro camera about 10
OBJECTIVE_FACTOR = 2.0  # largest disagreement with the objective power that is still believed
OVERRIDE_FACTOR = 2.0  # the user's value may differ by it from a file that its objective confirms
OVERRIDE_WARNING = 1.2  # from this factor on the difference is told
UM_AT_1X = 10.0  # um/px x objective power on common scanners: 0.5 at 20x, 0.25 at 40x


def resolve_mpp(
    path: object,
    *,
    file_mpp: tuple[float, float] | None,
    objective: float | None,
    override: float | int | None,
    trust: bool = False,
    problem: str = "",
) -> tuple[float, str, tuple[str, ...]]:
    """Decide a slide's um/px, never silently guessing.

    Args:
      path: the slide, for messages.
      file_mpp: (x, y) um/px as the file states it, None when it states none.
      objective: objective power as the file states it.
      override: the user's value, which wins over the file.
      trust: the user's value also wins where file and objective agree against it.
      problem: why the um/px that the file states is not to be understood.

    Returns:
      (um/px at the finest level, "override" or "file", sentences for the user).

    Raises:
      SlideError: missing, outside 0.1 to 10, not square, or against the objective power; the
        user's value more than twice or less than half of what file and objective agree on.
    """
    if override is not None:
        _check_range(path, override, "given for it", "correct the value that you gave")
        notes = () if trust else _compare(path, float(override), file_mpp, objective)
        return float(override), "override", notes
    if file_mpp is None:
        stated = problem or "the file does not say its um/px"
        raise SlideError(
            f"{path}: {stated}; give it in the mpp column of the label CSV or with mpp=."
        )
    advice = "give the true value in the mpp column of the label CSV or with mpp="
    for value in file_mpp:
        _check_range(path, value, "stated in the file", advice)
    x, y = file_mpp
    if not _square(file_mpp):
        raise SlideError(
            f"{path}: pixels are not square, {x:g} x {y:g} um/px in the file; {advice}."
        )
    mpp = (x + y) / 2
    if _usable(objective) and _factor(mpp, UM_AT_1X / objective) > OBJECTIVE_FACTOR:
        raise SlideError(
            f"{path}: {mpp:g} um/px disagrees with the objective power {objective:g}x (about "
            f"{UM_AT_1X / objective:g} um/px) by more than a factor of {OBJECTIVE_FACTOR:g}; "
            f"{advice}."
        )
    return float(mpp), "file", ()


def _compare(
    path: object,
    given: float,
    file_mpp: tuple[float, float] | None,
    objective: float | None,
) -> tuple[str, ...]:
    """The user's um/px beside what the file says: a sentence where they differ."""
    expected = UM_AT_1X / objective if _usable(objective) else None
    plausible = file_mpp is not None and all(MPP_RANGE[0] <= v <= MPP_RANGE[1] for v in file_mpp)
    if plausible and _square(file_mpp):
        mpp = sum(file_mpp) / 2
        agree = expected is not None and _factor(mpp, expected) <= OBJECTIVE_FACTOR
        if agree and _factor(given, mpp) > OVERRIDE_FACTOR:
            raise SlideError(
                f"{path}: {given:g} um/px, given for it, is {_times(given, mpp)} the {mpp:g} um/px "
                f"of the file, which its objective power {objective:g}x confirms; correct or "
                "remove the value that you gave, or set data.trust_mpp (trust_mpp=True) if it is "
                "right."
            )
        if expected is None or agree:
            expected, origin = mpp, "of the file"
        else:
            return ()  # the file contradicts itself: that is what the user's value is for
    else:
        origin = f"to be expected of its objective power {objective or 0:g}x"
    limit = OVERRIDE_WARNING if origin == "of the file" else OBJECTIVE_FACTOR
    if expected is None or _factor(given, expected) < limit:
        return ()
    return (
        f"its um/px was given as {given:g}, {_times(given, expected)} the {expected:g} {origin}",
    )


def _usable(objective: float | None) -> bool:
    return objective is not None and math.isfinite(objective) and objective > 0


def _square(mpp: tuple[float, float]) -> bool:
    return max(mpp) <= 1.05 * min(mpp)


def _factor(a: float, b: float) -> float:
    return max(a / b, b / a)


def _times(a: float, b: float) -> str:
    return f"{a / b:.3g} times"


def _check_range(path: object, mpp: float | int, origin: str, advice: str) -> None:
    low, high = MPP_RANGE
    if not low <= mpp <= high:  # also true for NaN
        raise SlideError(
            f"{path}: {mpp:g} um/px, {origin}, is outside {low:g} to {high:g}; {advice}."
        )
