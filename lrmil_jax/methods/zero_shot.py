"""zero_shot: tiles against descriptions of the classes. Nothing is trained, no slide is read."""

from ml_collections import ConfigDict

from lrmil_jax.errors import ConfigError
from lrmil_jax.methods.method import Method


class ZeroShot(Method):
    """Tiles in, figures out."""

    name = "zero_shot"
    stages = ("zero_shot",)

    def check(self, config: ConfigDict) -> None:
        if config.data.tiles is None and config.synthetic.slides == 0:
            raise ConfigError(
                "data.tiles is not set; give --config.data.tiles=FOLDER of tiles, or try "
                "--config zero_shot as it is, on procedural tiles"
            )
        if config.study.seeds or config.study.variants or config.study.budgets:
            raise ConfigError(
                "study.seeds, study.variants and study.budgets are of runs that train; leave "
                f"them away with method {self.name}"
            )
