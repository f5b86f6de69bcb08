"""A slide on its way through a model, before any model is there."""

import pytest

from lrmil_jax.data.schema import Geometry
from lrmil_jax.data.slide_jobs import TilingSettings
from lrmil_jax.errors import SlideError
from lrmil_jax.models.visit import planned
from lrmil_jax.patches import beside
from tests.slides.files import aperio, gradient, write_tiff


@pytest.mark.parametrize("trust", [False, True])
def test_trusted_um_per_px_reaches_the_slide(tmp_path, trust):
    text = aperio(power=20, mpp=0.5)
    path = write_tiff(tmp_path / "s.svs", [gradient(300, 300)], mpp=None, description=text)
    settings = TilingSettings(geometry=Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=16))
    with beside.slide_readers(1) as readers:
        (visit,) = planned([(path, 1.2, None)], settings, readers, high=False, trust_mpp=trust)
        if trust:
            assert visit.overview.mpp == 1.2
        else:
            with pytest.raises(SlideError, match="trust_mpp"):
                next(visit.patches(high=False))


def test_a_slide_too_coarse_for_the_model_gives_no_advice_for_a_config(tmp_path):
    path = write_tiff(tmp_path / "s.tif", [gradient(300, 300)], mpp=3.0)
    settings = TilingSettings(geometry=Geometry(hr_mpp=0.5, lr_mpp=2.0, patch_px=16))
    with beside.slide_readers(1) as readers:
        (visit,) = planned([(path, None, None)], settings, readers, high=False)
        with pytest.raises(SlideError, match=r"was trained .*without prepare\.upsample\.$"):
            next(visit.patches(high=False))
