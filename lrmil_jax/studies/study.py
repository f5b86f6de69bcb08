"""Running a study: every run in a working directory of its own, and nothing done twice."""

import logging
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from lrmil_jax import config as configuration
from lrmil_jax import files, pipeline
from lrmil_jax.errors import ConfigError
from lrmil_jax.stages import layout
from lrmil_jax.studies import results
from lrmil_jax.studies.plan import Run, is_study, plan, same_features, same_slides

log = logging.getLogger(__name__)


def run(config: ConfigDict, workdir: Path, names: Sequence[str] = ()) -> int:
    """Runs what is not done yet and writes `study/`; the caller holds the lock of `workdir`.

    Args:
      config: with the study's seeds and variants.
      workdir: gets `runs/` and `study/`.
      names: must be empty: a study runs all stages.

    Returns:
      How many slides could not be prepared, over all runs.

    Raises:
      ConfigError: see `plan.plan`, or stages were named.
    """
    if names:
        raise ConfigError("--stages has no meaning for a study; leave it away")
    runs = plan(config, workdir)
    files.write_json(workdir / "config.json", configuration.flatten(config))
    _share_programs(workdir)
    failed = 0
    for number, one in enumerate(runs, 1):
        log.info("run %d of %d: seed %d, %s", number, len(runs), one.seed, one.variant)
        before = runs[: number - 1]
        with layout.locked(one.folder):
            _share(one, before)
            donors = [other.folder for other in before if other.seed == one.seed]
            failed += pipeline.run(one.config, one.folder, [], donors)
        jax.clear_caches()  # the programs of this run; the next one's come from disk
    results.save(workdir / "study", runs)
    log.info("table and plots of all runs: %s", workdir / "study")
    return failed


def first(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config of the first run, or the config itself if it is no study."""
    return plan(config, workdir)[0].config if is_study(config) else config


def _share_programs(workdir: Path) -> None:
    """Runs of a study compile the same programs again and again: kept on disk, compiled once."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(workdir.absolute() / ".programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _share(run: Run, before: Sequence[Run]) -> None:
    """Links slides, regions and features that an earlier run has made of the same settings."""
    if (run.folder / "cohort.json").exists():
        return
    donor = next((other for other in before if same_features(run, other)), None)
    names = ["regions", "synthetic", "features"]
    if donor is None:
        donor = next((other for other in before if same_slides(run, other)), None)
        names.remove("features")
    if donor is None:
        return
    for name in names:
        if (donor.folder / name).exists():
            files.link(run.folder / name, donor.folder / name)
    claims = layout.read_claims(donor.folder)
    if "features" not in names:
        claims.pop("encoder", None)
    files.write_json(run.folder / "cohort.json", claims)  # last: a kill before it does this again
