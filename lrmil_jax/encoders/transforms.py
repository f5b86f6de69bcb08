"""The image transform that belongs to an encoder."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from lrmil_jax.errors import ConfigError
from lrmil_jax.types import AnyArray

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Transform:
    """From stored 8-bit RGB tiles to the encoder's input.

    Attributes:
      px: side of the encoder's input in pixels.
      mean: per channel, of values in 0 to 1.
      std: per channel, of values in 0 to 1.
    """

    px: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.px < 1:
            raise ConfigError(f"An encoder's input side must be at least 1 px, it is {self.px}.")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ConfigError("An encoder's transform needs three means and three positive SDs.")

    def normalise(
        self, images: UInt8[AnyArray, "B height width 3"]
    ) -> Float[Array, "B {self.px} {self.px} 3"]:
        """Scale to 0..1, resize to `px` x `px` if another size, subtract mean, divide by SD.

        The resize is bicubic and antialiased over the whole tile, without a crop and without
        rounding back to 8 bits; values are clipped to 0..1 as an image library would. Meant to
        run under jit, so that tiles travel to the device as bytes.

        Args:
          images: RGB tiles.

        Returns:
          f32 input of the encoder.
        """
        values = jnp.asarray(images).astype(jnp.float32) / 255.0
        if values.shape[1:3] != (self.px, self.px):
            shape = (len(values), self.px, self.px, 3)
            values = jnp.clip(jax.image.resize(values, shape, "cubic", antialias=True), 0.0, 1.0)
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, 3) for v in (self.mean, self.std))
        return (values - mean) / std
