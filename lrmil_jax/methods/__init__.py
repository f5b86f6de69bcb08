"""Methods: how a slide is classified. One file a method and its line in `METHODS`."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from lrmil_jax.methods.hdmil import Hdmil
from lrmil_jax.methods.lrmil import Lrmil
from lrmil_jax.methods.method import ComparedModel, Method
from lrmil_jax.methods.mil import HighMil, LowMil
from lrmil_jax.methods.wise_fuse import WiseFuse
from lrmil_jax.methods.zero_shot import ZeroShot
from lrmil_jax.methods.zoom_mil import ZoomMil

__all__ = ["METHODS", "ComparedModel", "Method", "of"]

METHODS: Mapping[str, Method] = {
    one.name: one
    for one in (Lrmil(), WiseFuse(), ZoomMil(), Hdmil(), HighMil(), LowMil(), ZeroShot())
}


def of(config: ConfigDict) -> Method:
    """The method of a config that `checks.validate` has seen."""
    return METHODS[config.method]
