"""What a slide costs under each model: seconds by phase, and floating point operations beside
encoding every HR patch."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lrmil_jax.report import comparison, table

_COLOURS = {
    "open_tissue": "#9a9a9a", "select": "#8a4f9e", "read": "#c77d2e", "encode": "#1f5fa8",
    "mil": "#4c8c4a",
}  # fmt: skip
_BAR = "#1f5fa8"


def encoding_flops(
    rows: Sequence[Mapping],
    high: Mapping[str, bool],
    of_patch: Mapping[str, float],
    *,
    hr_patches: float,
) -> dict[str, float]:
    """Floating point operations that encode a slide, the median one, by model's title.

    Args:
      rows: of the result table.
      high: whether a model's bags are of HR patches, by name; models that encode nothing are not
        in it.
      of_patch: of one patch at "hr" and "lr".
      hr_patches: of the median slide; all of them are the last bar, `table.EXHAUSTIVE`.
    """
    flops = {}
    for row in rows:
        if row["model"] in high:
            looked_at = row.get("patches_lr", 0.0)
            level = "hr" if high[row["model"]] else "lr"
            rest = (row["patches"] - looked_at) * of_patch[level]
            flops[row["title"]] = looked_at * of_patch["lr"] + rest
    return flops | {table.EXHAUSTIVE: hr_patches * of_patch["hr"]}


def save(path: Path, rows: Sequence[Mapping], flops: Mapping[str, float]) -> str:
    """Draws seconds, where they were measured, and operations, where they are known.

    Args:
      path: PNG to write.
      rows: of the result table.
      flops: `encoding_flops`, or {}.

    Returns:
      The caption; "" where there is nothing, and nothing is drawn.
    """
    timed = [row for row in rows if row.get("seconds_encode") is not None]
    panels = bool(timed) + bool(flops)
    if not panels:
        return ""
    figure = Figure(
        figsize=(4.6 * panels, 1.0 + 0.4 * max(len(timed), len(flops))), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    parts = []
    if timed:
        _draw_seconds(axes.pop(0), timed)
        parts.append("Seconds a slide from its file, medians after a warm-up.")
    if flops:
        _draw_flops(axes.pop(0), flops)
        parts.append(
            f"Operations that encode the median slide, counted by XLA; {table.EXHAUSTIVE}: all of "
            "its HR patches."
        )
    comparison.save_figure(figure, path)
    return " ".join(parts)


def _draw_seconds(axis: Axes, rows: Sequence[Mapping]) -> None:
    ends = [0.0] * len(rows)
    for phase, colour in _COLOURS.items():
        seconds = [row.get(f"seconds_{phase}") or 0.0 for row in rows]
        if any(seconds):
            axis.barh(range(len(rows)), seconds, left=ends, color=colour, height=0.6,
                      label=phase.replace("_", " + "))  # fmt: skip
            ends = [end + value for end, value in zip(ends, seconds, strict=True)]
    for place, end in enumerate(ends):
        axis.text(end, place, f" {end:.3g} s", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize=8)
    axis.set(xlabel="seconds a slide", xlim=(0, 1.2 * max(ends)))
    axis.invert_yaxis()
    axis.legend(fontsize=7, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))


def _draw_flops(axis: Axes, flops: Mapping[str, float]) -> None:
    unit, size = ("TFLOP", 1e12) if max(flops.values()) >= 1e12 else ("GFLOP", 1e9)
    names, values = list(flops), [value / size for value in flops.values()]
    axis.barh(range(len(names)), values, color=_BAR, height=0.6)
    for place, value in enumerate(values):
        less = values[-1] / value if value else 0
        text = f" {value:.3g}" + (f" ({less:.3g} times less)" if less > 1.05 else "")
        axis.text(value, place, text, va="center", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlabel=f"{unit} to encode a slide", xlim=(0, 1.45 * max(values)))
    axis.invert_yaxis()
