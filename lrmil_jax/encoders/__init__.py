"""Image encoders: ViTs by name, the transform bound to each, and their weights on disk."""

from lrmil_jax.encoders import pretrained
from lrmil_jax.encoders.registry import ENCODERS, EncoderSpec, create, default_layers, transform
from lrmil_jax.encoders.transforms import Transform
from lrmil_jax.encoders.vit import EncoderOutput, VisionTransformer

__all__ = [
    "ENCODERS",
    "EncoderOutput",
    "EncoderSpec",
    "Transform",
    "VisionTransformer",
    "create",
    "default_layers",
    "pretrained",
    "transform",
]
