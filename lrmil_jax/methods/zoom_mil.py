"""zoom_mil: attention at LR chooses regions, differentiably in training, and their HR patches are
read, after Thandiackal et al., ECCV 2022 (`heads.zoom_mil`)."""

from lrmil_jax.methods import two_scale


class ZoomMil(two_scale.TwoScale):
    """The choice is learned from the slides' labels, through the HR patches that it reads."""

    name = "zoom_mil"
    head = "zoom_mil"
    main = two_scale.compared("zoom_mil", "ZoomMIL")
