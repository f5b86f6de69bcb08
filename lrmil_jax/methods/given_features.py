"""Which features of other tools a method can work on, from the config alone."""

from ml_collections import ConfigDict

from lrmil_jax.config import flatten
from lrmil_jax.errors import ConfigError
from lrmil_jax.workspace import foreign


def check(config: ConfigDict, bags: tuple[str, ...]) -> None:
    """Refuses features that the method does not read, or has too few of.

    Args:
      config: of a run.
      bags: resolutions of which the method can take features, "hr" and "lr".

    Raises:
      ConfigError: naming the keys, and what to do.
    """
    if not foreign.given(config):
        return
    if config.data.labels is None:
        raise ConfigError("data.features needs labels: give --config.data.labels=LABELS.csv too")
    if not bags:
        raise ConfigError(
            f"method {config.method} cannot work on the features of another tool; use mil, mil_lr "
            "or lrmil, or leave data.features and data.features_lr away"
        )
    checks = {("hr",): _check_hr, ("lr",): _check_lr, ("hr", "lr"): _check_both}
    checks[bags](config)
    if config.data.annotations is not None:
        raise ConfigError(
            "data.annotations says where patches are cut, but those of data.features are there "
            "already; leave it away"
        )
    if not foreign.reads_slides(config):
        for key in ("data.masks", "evaluate.colour_baseline"):
            if flatten(config)[key]:
                raise ConfigError(
                    f"{key} is of slides, which are not read where data.features stand for them; "
                    "leave it away"
                )


def _check_hr(config: ConfigDict) -> None:
    if config.data.features is None or config.data.features_lr is not None:
        raise ConfigError(
            f"method {config.method} reads HR features alone: give data.features, and leave "
            "data.features_lr away"
        )


def _check_lr(config: ConfigDict) -> None:
    if None not in (config.data.features, config.data.features_lr):
        raise ConfigError(
            f"method {config.method} reads LR features alone: give data.features_lr, and leave "
            "data.features away"
        )
    if foreign.reads_slides(config):
        raise ConfigError(
            f"method {config.method} would encode LR patches of data.slides itself: leave "
            "data.features away, or data.slides"
        )


def _check_both(config: ConfigDict) -> None:
    if config.data.features is None:
        raise ConfigError(
            f"method {config.method} learns from HR features too: give data.features beside "
            "data.features_lr, or use method mil_lr"
        )
    if config.data.features_lr is None and not foreign.reads_slides(config):
        raise ConfigError(
            f"method {config.method} has nothing at LR: give data.features_lr; or for stage 1 "
            "data.slides, and encoder.weights of the encoder that made the features; or use "
            "method mil"
        )
