"""Damage to what a file says of its um/px, and to the pages beside the pyramid."""

from tests.slides.corpus import editor as tiff
from tests.slides.corpus import sources
from tests.slides.corpus.changes import (
    Change,
    Mutation,
    chunk,
    edit,
    on_page,
    patching,
    setting,
    text,
    without,
)
from tests.slides.corpus.outcome import Pixels, Refused

_SAME = Pixels()
_NO_MPP = Pixels(mpp=None)
_PER_CM = 20000


def _rational(tag: int, numerator: int, denominator: int, kind: int = tiff.RATIONAL) -> Change:
    return setting(tag, numerator, denominator, kind=kind)


RESOLUTION = [
    Mutation("resolution", "zero_denominator", "jpeg", _rational(282, 20000, 0), _NO_MPP, True),
    Mutation("resolution", "zero_numerator", "jpeg", _rational(282, 0, 1), _NO_MPP, True),
    Mutation("resolution", "zero_over_zero", "jpeg", _rational(283, 0, 0), _NO_MPP),
    Mutation("resolution", "no_x", "jpeg", without(tiff.X_RESOLUTION), _NO_MPP),
    Mutation("resolution", "no_y", "jpeg", without(tiff.Y_RESOLUTION), _NO_MPP),
    Mutation(
        "resolution", "no_unit", "jpeg", without(tiff.RESOLUTION_UNIT), Pixels(mpp=1.27), True
    ),
    Mutation("resolution", "unit_of_none", "jpeg", setting(tiff.RESOLUTION_UNIT, 1), _NO_MPP),
    Mutation("resolution", "unit_9", "jpeg", setting(tiff.RESOLUTION_UNIT, 9), _NO_MPP, True),
    Mutation(
        *("resolution", "inches", "jpeg"),
        on_page(lambda p: (p.set(282, 50800, 1), p.set(283, 50800, 1), p.set(296, 2))),
        _SAME,
    ),
    Mutation(
        "resolution", "as_short", "jpeg", setting(282, _PER_CM, kind=tiff.SHORT), _NO_MPP, True
    ),
    Mutation("resolution", "as_float", "jpeg", setting(282, 2e4, kind=tiff.FLOAT), _NO_MPP),
    Mutation("resolution", "as_text", "jpeg", text(282, "20000/1"), _NO_MPP),
    Mutation("resolution", "negative", "jpeg", _rational(282, -20000, 1, tiff.SRATIONAL), _NO_MPP),
    Mutation("resolution", "of_two_values", "jpeg", setting(282, 20000, 1, 20000, 1), _SAME),
    Mutation("resolution", "past_end", "jpeg", patching(282, value=10**7), _NO_MPP, True),
    Mutation("resolution", "of_unknown_type", "jpeg", patching(282, kind=99), _NO_MPP),
    Mutation("resolution", "not_square", "jpeg", _rational(283, 40000, 1), _NO_MPP),
    Mutation("resolution", "absurd", "jpeg", _rational(282, 2**32 - 1, 1), _NO_MPP),
]


def _said(extra: str) -> Change:
    return text(tiff.DESCRIPTION, sources.aperio_text(extra=extra))


# Without a description that says "Aperio" the thumbnail is a level like others.
_ALL_LEVELS = Pixels(levels=(1, 3, 4), mpp=None)
_APERIO = {
    "absent": (without(tiff.DESCRIPTION), _ALL_LEVELS),
    "empty": (text(tiff.DESCRIPTION, ""), _ALL_LEVELS),
    "cut": (text(tiff.DESCRIPTION, "Aperio Image Lib"), _NO_MPP),
    "cut_within_value": (_said("AppMag = 20|MPP = "), _NO_MPP),
    "no_value": (_said("AppMag = 20|MPP"), _NO_MPP),
    "value_cut": (_said("AppMag = 20|MPP = 0."), _NO_MPP),
    "decimal_comma": (_said("AppMag = 20|MPP = 0,5"), _SAME),
    "no_number": (_said("AppMag = 20|MPP = half"), _NO_MPP),
    "nan": (_said("AppMag = 20|MPP = nan"), _NO_MPP),
    "infinite": (_said("AppMag = 20|MPP = inf"), _NO_MPP),
    "negative": (_said("AppMag = 20|MPP = -0.5"), _NO_MPP),
    "overflow": (_said("AppMag = 20|MPP = 1e999"), _NO_MPP),
    "of_another_objective": (_said("AppMag = 60|MPP = 0.5"), _NO_MPP),
    "objective_no_number": (_said("AppMag = x|MPP = 0.5"), _SAME),
    "objective_zero": (_said("AppMag = 0|MPP = 0.5"), _SAME),
    "objective_absent": (_said("MPP = 0.5"), _SAME),
    "separators_only": (_said("||||=|=|MPP = 0.5||"), _SAME),
    "accents": (_said("AppMag = 20|MPP = 0.5|User = M\xfcller|ScanScope ID = \xb5"), _SAME),
    "utf16": (text(tiff.DESCRIPTION, sources.aperio_text().encode("utf-16")), _ALL_LEVELS),
    "not_text": (text(tiff.DESCRIPTION, b"\xff\xfe\x80\0\1\2"), _ALL_LEVELS),
    "no_closing_zero": (
        on_page(lambda p: p.fields.update({270: tiff.Field(2, p.fields[270].values[:-1])})),
        _SAME,
    ),
    "past_end": (patching(tiff.DESCRIPTION, value=10**7), _ALL_LEVELS),
    "endless": (patching(tiff.DESCRIPTION, count=2**31), _ALL_LEVELS),
    "of_bytes": (patching(tiff.DESCRIPTION, kind=tiff.UNDEFINED), _ALL_LEVELS),
    "of_numbers": (setting(tiff.DESCRIPTION, 1, 2, 3, kind=tiff.SHORT), _ALL_LEVELS),
    "very_long": (_said("AppMag = 20|MPP = 0.5|Note = " + "x" * (1 << 20)), _SAME),
}
_QUICK = ("absent", "cut_within_value", "decimal_comma", "nan", "accents", "past_end", "not_text")
DESCRIPTIONS = [
    Mutation("Aperio text", name, "aperio", change, wanted, name in _QUICK)
    for name, (change, wanted) in _APERIO.items()
]


def _label_first(opened: tiff.Tiff) -> None:
    opened.pages[2], opened.pages[3] = opened.pages[3], opened.pages[2]


_BESIDE = {
    "sound": (lambda data: data, _SAME),
    "thumbnail_without_text": (without(tiff.DESCRIPTION, page=1), _SAME),
    "thumbnail_damaged": (chunk(lambda d: b"damaged", 0, page=1), _SAME),
    "thumbnail_of_bad_compression": (setting(tiff.COMPRESSION, 60000, page=1), _SAME),
    "thumbnail_of_no_size": (setting(tiff.WIDTH, 0, page=1), _SAME),
    "no_thumbnail": (edit(lambda t: t.pages.pop(1)), _SAME),
    "label_of_no_type": (without(tiff.SUBFILE, page=3), _SAME),
    "label_of_bad_type": (setting(tiff.SUBFILE, 12345, page=3), _SAME),
    "label_as_level": (setting(tiff.SUBFILE, 0, page=3), _SAME),
    "label_of_no_size": (setting(tiff.WIDTH, 0, page=3), _SAME),
    "label_before_level": (edit(_label_first), _SAME),
    "macro_of_no_type": (without(tiff.SUBFILE, page=4), _SAME),
    "no_label_no_macro": (edit(lambda t: t.pages.__delitem__(slice(3, None))), _SAME),
    "one_page": (edit(lambda t: t.pages.__delitem__(slice(1, None))), Pixels(levels=(1,))),
}
BESIDE = [
    Mutation("Aperio pages", name, "aperio", change, wanted,
             name in ("sound", "thumbnail_without_text", "label_of_bad_type", "label_before_level"))
    for name, (change, wanted) in _BESIDE.items()
]  # fmt: skip


def _xml(value: str | bytes) -> Change:
    return text(tiff.DESCRIPTION, value)


_BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {new} "{10 * f"&{old};"}">'
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><OME>&i;</OME>"
)
_HALF_PX = 'PhysicalSizeX="0.5" PhysicalSizeY="0.5"'
_OME = {
    "sound": (lambda data: data, _SAME),
    "cut": (_xml(sources.ome_text()[:300]), _SAME),
    "malformed": (_xml(sources.ome_text().replace("<Pixels", "<Pixels <")), _SAME),
    "wrong_root": (_xml("<html><body>OME></body></html>"), _SAME),
    "empty_root": (_xml("<OME/>OME>"), _SAME),
    "no_physical_size": (_xml(sources.ome_text("")), _SAME),
    "other_namespace": (_xml(sources.ome_text().replace("openmicroscopy", "example")), _SAME),
    "no_namespace": (_xml(sources.ome_text().replace(' xmlns="', ' name="')), _SAME),
    "bad_size": (_xml(sources.ome_text(size='SizeX="9999" SizeY="7777"')), _SAME),
    "size_no_number": (_xml(sources.ome_text(size='SizeX="x" SizeY="y"')), Refused("OME|size|XML")),
    "bad_directory": (_xml(sources.ome_text().replace('IFD="0"', 'IFD="9"')), _SAME),
    "physical_size_no_number": (_xml(sources.ome_text(_HALF_PX.replace(".5", ".x"))), _NO_MPP),
    "physical_size_comma": (_xml(sources.ome_text(_HALF_PX.replace(".", ","))), _SAME),
    "physical_size_zero": (_xml(sources.ome_text(_HALF_PX.replace(".5", ""))), _NO_MPP),
    "physical_size_nan": (_xml(sources.ome_text(_HALF_PX.replace("0.5", "nan"))), _NO_MPP),
    "unit_unheard_of": (_xml(sources.ome_text(_HALF_PX + ' PhysicalSizeXUnit="cubit"')), _NO_MPP),
    "not_utf8": (_xml(sources.ome_text().encode().replace(b"Image:0", b"Im\xff\xfe:0")), _SAME),
    "entities_without_end": (_xml(_BOMB), _SAME),
}
XML = [
    Mutation("OME-XML", name, "ome", change, wanted,
             name in ("sound", "malformed", "bad_size", "entities_without_end"))
    for name, (change, wanted) in _OME.items()
]  # fmt: skip

_TEXT = sources.philips_text()
_PHILIPS = {
    "sound": (lambda data: data, _SAME),
    "cut": (_xml(_TEXT[:400]), _NO_MPP),
    "malformed": (_xml(_TEXT.replace("<Array>", "<Array", 1)), _NO_MPP),
    "wrong_root": (_xml("<html></DataObject>"), _NO_MPP),
    "no_spacing": (_xml(sources.philips_text(None)), _NO_MPP),
    "one_spacing": (_xml(sources.philips_text('"0.0005"')), _NO_MPP),
    "spacing_no_number": (_xml(sources.philips_text('"half" "half"')), _NO_MPP),
    "spacing_zero": (_xml(sources.philips_text('"0" "0"')), _NO_MPP),
    "spacing_in_um": (_xml(sources.philips_text('"500" "500"')), _NO_MPP),
    "no_maker": (_xml(_TEXT.replace("DICOM_MANUFACTURER", "MAKER")), _SAME),
    "not_utf8": (_xml(_TEXT.encode().replace(b"Hamamatsu", b"Ha\xff\xfe")), _SAME),
}
XML += [
    Mutation(
        "Philips XML", name, "philips", change, wanted, name in ("sound", "malformed", "no_spacing")
    )
    for name, (change, wanted) in _PHILIPS.items()
]

XML += [
    Mutation(
        *("other XML", "leica_malformed", "jpeg"),
        _xml('<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection></scn>'),
        Refused("Leica"),
        True,
    ),
    Mutation(*("other XML", "leica_empty", "jpeg"), _xml("<scn></scn>"), _SAME),
    Mutation(
        *("other XML", "leica_bad_directory", "jpeg"),
        _xml(
            '<scn><collection sizeX="9" sizeY="9"><image name="a"><pixels sizeX="9" sizeY="9">'
            '<dimension sizeX="9" sizeY="9" r="0" ifd="77"/></pixels><view sizeX="9" sizeY="9" '
            'offsetX="1" offsetY="1"/></image></collection></scn>'
        ),
        _SAME,
    ),
    Mutation(
        *("other XML", "ventana_malformed", "jpeg"),
        edit(lambda t: (t.pages[0].text(305, "Ventana"), t.pages[0].text(700, "<iScan><"))),
        Refused("Ventana"),
    ),
    Mutation(
        *("other XML", "hamamatsu_alone", "jpeg"),
        edit(lambda t: (t.pages[0].set(65420, 1, kind=4), t.pages[0].text(271, "Hamamatsu"))),
        Refused("Hamamatsu"),
    ),
]
