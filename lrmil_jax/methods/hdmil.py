"""hdmil: which regions a network on HR patches needs is learned by one on LR patches, which chooses
what is read, after Dong et al., CVPR 2025 (`heads.hdmil`)."""

from lrmil_jax.methods import two_scale


class Hdmil(two_scale.TwoScale):
    """The choice is learned from a mask of the HR patches, and that from the slides' labels."""

    name = "hdmil"
    head = "hdmil"
    main = two_scale.compared("hdmil", "HDMIL")
