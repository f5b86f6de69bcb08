"""A page about one slide: a viewer with attention over it, and the patches that weigh most and
least. Each page holds all that it shows."""

import base64
import dataclasses
import html as text_html
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from lrmil_jax.report import heatmap, html, pyramid

_CARD_PX = 260
_PATCH_PX = 128  # of a shown patch, at most


@dataclasses.dataclass(frozen=True)
class ShownPatch:
    """A patch as it is shown.

    Attributes:
      index: among the slide's patches.
      image: of any size.
    """

    index: int
    image: UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidePage:
    """What a page is made of.

    Attributes:
      name: of the slide.
      facts: names and values above the viewer.
      verdict: prediction and truth in a few words.
      is_wrong: the prediction is not the truth; None where that cannot be said.
      picture: of the slide, or of its patches where they lie; white elsewhere.
      origin: level-0 place of its corner; downsample: level-0 px per px of it.
      mpp: um/px of level 0.
      xy: level-0 corners of the patches; side: theirs in level-0 px.
      attention: of each patch, sums to 1.
      regions: level-0 corners of LR patches that were chosen to be read at HR; region_side: theirs.
      lesions: rings of level-0 places around lesions (`outlines.outlines`); () where none is known.
      most, least: patches of most and of least attention.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    verdict: str
    is_wrong: bool | None
    picture: UInt8[np.ndarray, "h w 3"]
    origin: tuple[int, int]
    downsample: float
    mpp: float
    xy: Int[np.ndarray, "N 2"]
    side: int
    attention: Float[np.ndarray, " N"]
    regions: Int[np.ndarray, "n 2"] | None = None
    region_side: int = 0
    lesions: Sequence[Int[np.ndarray, "_ 2"]] = ()
    most: Sequence[ShownPatch] = ()
    least: Sequence[ShownPatch] = ()


def file_name(slide_id: str) -> str:
    """Of a slide's page, below the report's folder."""
    return f"slides/{slide_id}.html"


def address(slide_id: str) -> str:
    """The same as a page links it."""
    return quote(file_name(slide_id))


def render(page: SlidePage, *, before: str | None = None, after: str | None = None) -> str:
    """The whole page.

    Args:
      page: what it is made of.
      before, after: names of the slides whose pages come before and after it; None: there is none.
    """
    body = [
        _neighbours(before, after),
        f"<h1>{text_html.escape(page.name)}</h1>",
        html.paragraph(page.verdict, "lead"),
        html.facts(page.facts),
        _tools(page),
        '<div class="viewer"><canvas tabindex="0" role="img" aria-label="'
        f'{text_html.escape(f"Slide {page.name} with the attention of its patches")}"></canvas>'
        "<output></output></div>",
        html.paragraph(
            "Drag or arrow keys move, wheel, pinch, + and - zoom, 0 shows all. The picture is made "
            "of the patches that were read; white is what was not.",
            "soft",
        ),
        _patches("Patches of most attention", page, page.most),
        _patches("Patches of least attention", page, page.least),
        html.data("slide", _data(page)),
    ]
    script = Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")
    return html.document(f"{page.name}: lrmil_jax", *body, script=script)


def _neighbours(before: str | None, after: str | None) -> str:
    """Links to the run's page and to the slides beside this one."""
    links = [html.link("../index.html#slides", "All results")]
    for name, word in ((before, "Previous"), (after, "Next")):
        if name is not None:
            links.append(html.link(quote(f"{name}.html"), f"{word}: {name}"))
    return f'<nav aria-label="Slides">{"".join(links)}</nav>'


def _tools(page: SlidePage) -> str:
    overlays = ""
    if page.regions is not None:
        overlays += _switch("regions", f"regions read at high power ({len(page.regions)})")
    if page.lesions:
        overlays += _switch("lesions", "lesion outline")
    # A head that weighs all patches alike has nothing to show.
    none = "" if np.ptp(page.attention) else " selected"
    return (
        '<div class="tools">'
        '<button id="in" aria-label="Zoom in">+</button>'
        '<button id="out" aria-label="Zoom out">&minus;</button>'
        '<button id="fit" aria-label="Show the whole slide">all</button>'
        '<label>attention <select id="layer"><option value="share">&times; the even share</option>'
        '<option value="rank">rank in this slide</option>'
        f'<option value="none"{none}>none</option>'
        "</select></label>"
        '<label>strength <input type="range" id="opacity" min="0" max="100" value="45"></label>'
        f"{overlays}{_scale('share', '1/16', '16 &times;')}{_scale('rank', 'least', 'most')}</div>"
    )


def _switch(name: str, label: str) -> str:
    return f'<label><input type="checkbox" id="{name}" checked>{label}</label>'


def _scale(layer: str, low: str, high: str) -> str:
    stops = (matplotlib.colors.to_hex(heatmap.COLOURS(place)) for place in np.linspace(0, 1, 9))
    return (
        f'<span class="scale" data-layer="{layer}">{low}'
        f'<i style="background:linear-gradient(90deg,{",".join(stops)})"></i>{high}</span>'
    )


def _patches(title: str, page: SlidePage, patches: Sequence[ShownPatch]) -> str:
    if not patches:
        return ""
    shares = heatmap.even_shares(page.attention)
    shown = []
    for patch in patches:
        image = Image.fromarray(patch.image)
        image.thumbnail((_PATCH_PX, _PATCH_PX))
        x, y = page.xy[patch.index].tolist()
        score = f"{shares[patch.index]:.3g} times the even share"
        shown.append(
            f'<button data-patch="{patch.index}"><img alt="Patch at x {x}, y {y}: {score}" '
            f'src="data:image/jpeg;base64,{pyramid.jpeg(image, quality=85)}">{score}</button>'
        )
    return html.section(title, f'<div class="tiles">{"".join(shown)}</div>')


def _data(page: SlidePage) -> dict:
    def packed(values: np.ndarray, kind: str) -> str:
        return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()

    colours = np.round(heatmap.COLOURS(np.arange(256))[:, :3] * 255)
    return {
        "levels": pyramid.levels(page.picture),
        "tile": pyramid.TILE_PX,
        "origin": list(page.origin),
        "downsample": page.downsample,
        "mpp": page.mpp,
        "side": page.side,
        "octaves": heatmap.OCTAVES,
        "xy": packed(page.xy, "<i4"),
        "attention": packed(page.attention, "<f4"),
        "rank": packed(np.round(heatmap.rank_scaled(page.attention) * 255), "u1"),
        "colours": packed(colours, "u1"),
        "regions": [] if page.regions is None else page.regions.tolist(),
        "region_side": page.region_side,
        "lesions": [ring.tolist() for ring in page.lesions],
    }


def card(page: SlidePage) -> str:
    """A small picture with the verdict that links the page."""
    image = Image.fromarray(page.picture)
    image.thumbnail((_CARD_PX, _CARD_PX))
    downsample = page.downsample * page.picture.shape[1] / image.width
    places = page.xy - np.asarray(page.origin)
    coloured = heatmap.blend(
        np.asarray(image), downsample, places, page.side, page.attention, absolute=True, alpha=0.45
    )
    source = pyramid.jpeg(Image.fromarray(coloured), quality=70)
    mark = {True: "wrong: ", False: "", None: ""}[page.is_wrong]
    return (
        f'<a class="card" href="{address(page.name)}"><img '
        f'alt="{text_html.escape(f"Attention on slide {page.name}")}" '
        f'src="data:image/jpeg;base64,{source}"><strong>{text_html.escape(page.name)}</strong><br>'
        f"{mark}{text_html.escape(page.verdict)}</a>"
    )


def cards(made: Sequence[str]) -> str:
    """Cards beside each other."""
    return f'<div class="cards">{"".join(made)}</div>' if made else ""
