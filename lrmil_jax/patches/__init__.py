"""The patches of a slide, from its shard or its file: the only reader that the rest knows."""

from lrmil_jax.patches.source import PatchSource

__all__ = ["PatchSource"]
