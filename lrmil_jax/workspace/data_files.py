"""Where the files that the config names are on this machine, fetched from object storage or not."""

from pathlib import Path

from ml_collections import ConfigDict

from lrmil_jax import processes, storage


def labels(config: ConfigDict) -> Path | None:
    """The label table; None if there is none.

    Raises:
      UserError: it is in object storage and cannot be read (`storage.fetched`).
    """
    return _file(config, config.data.labels)


def slide_table(config: ConfigDict) -> Path | None:
    """The table of slides beside the label table, if there is one; see `labels`."""
    return _file(config, config.data.slide_table)


def slides(config: ConfigDict) -> Path | None:
    """The folder of slides; of a bucket the one that stands for it, whose slides are not fetched.

    Raises:
      UserError: it is in object storage and cannot be listed (`storage.local_folder`).
    """
    name = config.data.slides
    if storage.is_url(name):
        return storage.local_folder(name, staging(config))
    return Path(name) if name else None


def _file(config: ConfigDict, name: str | None) -> Path | None:
    if storage.is_url(name):
        return storage.fetched(name, staging(config))
    return Path(name) if name else None


def staging(config: ConfigDict) -> storage.Staging:
    """Where copies of objects are kept."""
    return storage.Staging(config.data.staging, config.data.staging_gib)


def ahead(config: ConfigDict, paths: list[Path]) -> storage.Ahead:
    """Fetches slides before the processes of `prepare` open them, two for each."""
    workers = config.prepare.workers or processes.usable_cores()
    return storage.Ahead(paths, count=2 * workers)
