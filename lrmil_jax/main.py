"""`python -m lrmil_jax.main`: flags and dispatch. Mistakes end in one sentence."""

import logging
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from lrmil_jax import cluster, flag_rules
from lrmil_jax.cluster import keeper
from lrmil_jax.cluster.stopping import SENTENCE, STATUS, StoppedError, stopping
from lrmil_jax.errors import ConfigError, UserError, one_line
from lrmil_jax.progress import setup_logging
from lrmil_jax.storage import workdirs

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "a config that comes along, FILE.py or FILE.yaml; and :tiny after it"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "where all output goes: a folder, s3://bucket/path or gs://bucket/path"
)
_SCRATCH = flags.DEFINE_string(
    "scratch", None, "of a --workdir in a bucket: the folder in which this host works on it"
)
_STAGES = flags.DEFINE_list("stages", [], "stages to run (default all), or predict, or check")
_SLIDE = flags.DEFINE_string("slide", None, "predict: one slide file")
_SLIDES = flags.DEFINE_string("slides", None, "predict: a folder of slides, or a CSV")
_FOLDER = flags.DEFINE_string(
    "folder", None, "predict: where the slides of a CSV lie, if not by it"
)
_MPP = flags.DEFINE_float("mpp", None, "predict: um/px of --slide, if the file's is not right")
_TRUST_MPP = flags.DEFINE_bool(
    "trust_mpp", False, "predict: um/px given win even where file and objective agree against them"
)
_FORMATS = flags.DEFINE_list(
    "formats", ["geojson"], "predict: files for viewers: geojson, ome_tiff, ... (docs/viewers.md)"
)
_ANNOTATIONS = flags.DEFINE_string(
    "annotations",
    None,
    "predict: QuPath's GeoJSON of --slide, or a folder of <slide_id>.geojson: "
    "nothing outside of what was drawn is tissue",
)
_ANNOTATION_CLASSES = flags.DEFINE_list(
    "annotation_classes", [], "predict: classifications of --annotations that count (default all)"
)
_MODEL = flags.DEFINE_string("model", None, "predict, evaluate --cohort: the model folder")
_COHORT = flags.DEFINE_string(
    "cohort", None, "evaluate: label CSV of slides that --model has never seen"
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "several processes: HOST:PORT of the first one, or auto on a cluster"
)
_SHARD = flags.DEFINE_string(
    "shard", None, "i/n: only this part of the slides, of stages that are done slide by slide"
)
_BEAM = flags.DEFINE_list(
    "beam_pipeline_options", None, "name=value,...: prepare slides by a job of Apache Beam"
)
_LEFT_OUT_OK = flags.DEFINE_bool(
    "left_out_ok", False, "exit status 0 where slides were left out; mistakes stay 1"
)
_PROCESSES = flags.DEFINE_integer("processes", None, "several processes: how many")
_JOIN_SECONDS = flags.DEFINE_integer(
    "join_seconds", 300, "several processes: how long to wait for all of them to come"
)
_PROCESS = flags.DEFINE_integer("process", None, "several processes: which this is, from 0")

log = logging.getLogger("lrmil_jax")


def main(arguments: list[str]) -> int:
    """Dispatches; the exit status is 1 if anything could not be done, `stopping.STATUS` if the run
    was asked to stop."""
    setup_logging()
    if _COORDINATOR.value is not None and keeper.is_needed():
        return keeper.run([sys.executable, "-m", "lrmil_jax.main", *sys.argv[1:]])
    status = 1
    try:
        if len(arguments) > 1:
            raise ConfigError(f"{arguments[1]!r} is no flag; did you forget '--'?")
        stopping.listen()
        _join()
        status = min(dispatch(), 1)
        cluster.finish()
    except UserError as error:
        log.error("%s", error)
        cluster.fail(str(error))
    except StoppedError:
        log.error("%s", SENTENCE)
        status = STATUS
        cluster.finish()
    except (Exception, KeyboardInterrupt) as error:
        by_hand = isinstance(error, KeyboardInterrupt)
        cluster.fail("by hand" if by_hand else f"{type(error).__name__}: {one_line(error)}")
        if not cluster.several():
            raise
        log.error("stopped by hand", exc_info=not by_hand)
    finally:
        stopping.ignore()
    cluster.leave(status)
    return status


def _join() -> None:
    """Makes this process one of several, where the command line says so."""
    flag_rules.check(
        stages=_STAGES.value,
        workdir=_WORKDIR.value,
        scratch=_SCRATCH.value,
        cohort=_COHORT.value,
        shard=_SHARD.value,
        beam=_BEAM.value,
        coordinator=_COORDINATOR.value,
        numbered=_PROCESSES.value is not None or _PROCESS.value is not None,
    )
    if _COORDINATOR.value is None:
        return
    cluster.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, seconds=_JOIN_SECONDS.value)
    config = _CONFIG.value
    cluster.same({
        "version (a hash of its code)": cluster.code(),
        "devices": cluster.devices(),
        "--stages": ",".join(_STAGES.value),
        "--workdir": str(_WORKDIR.value),
        **({} if config is None else _texts(config)),
    })  # fmt: skip
    if not cluster.is_first():
        setup_logging(logging.ERROR)


def _texts(config: ConfigDict) -> dict[str, str]:
    """Every key of a config."""
    from lrmil_jax import config as configuration

    return {key: repr(value) for key, value in configuration.flatten(config).items()}


def dispatch() -> int:
    """Runs what the flags ask for and gives the number of slides or checks that failed; 0 where
    slides may be left out."""
    if _LEFT_OUT_OK.value and _STAGES.value == ["check"]:
        raise ConfigError("--left_out_ok has no meaning for check, which leaves nothing out")
    failed = _dispatch()
    if not failed or not _LEFT_OUT_OK.value:
        return failed
    what = "1 slide was" if failed == 1 else f"{failed} slides were"
    log.warning("%s left out, for the reasons above; --left_out_ok makes the exit status 0", what)
    return 0


def _dispatch() -> int:
    # Late imports: a mistyped flag waits for no JAX, a run for nothing that it does not use, and
    # its processes, which import this module anew, for neither.
    from lrmil_jax.workspace import layout

    stages = _STAGES.value
    if _WORKDIR.value is None:
        raise ConfigError("--workdir is missing; name a folder for the output")
    if stages == ["predict"]:
        if _MODEL.value is None or (_SLIDE.value is None) == (_SLIDES.value is None):
            raise ConfigError("predict needs --model DIR and one of --slide FILE or --slides PATH")
        with _opened("predictions") as workdir:
            return _predict(workdir.folder)
    if _COHORT.value is not None:
        with _opened("predictions", "evaluate", "report") as workdir:
            return _evaluate_external(workdir.folder)
    if _CONFIG.value is None:
        raise ConfigError("--config is missing; for a first look: --config quickstart")
    from lrmil_jax import checks
    from lrmil_jax.studies import plan
    from lrmil_jax.workspace import cohorts

    cohorts.take_one_split(_CONFIG.value)
    checks.validate(_CONFIG.value, stages)
    if stages == ["check"]:
        from lrmil_jax import preflight

        with _opened(saved=False) as workdir, layout.locked(workdir.folder):
            folder = workdir.folder
            return preflight.run(plan.first(_CONFIG.value, folder), folder)
    with _opened() as workdir:
        return _run(workdir)


def _opened(*below: str, saved: bool = True) -> AbstractContextManager[workdirs.Workdir]:
    """The working directory, a folder or in a bucket; see `workdirs.Work`."""
    from lrmil_jax.workspace import shards

    shard = ""
    if _SHARD.value is not None:
        index, count = shards.parse(_SHARD.value)
        shard = f"{index + 1}-of-{count}"
    return workdirs.opened(_WORKDIR.value, workdirs.Work(shard, below, saved), _SCRATCH.value)


def _run(workdir: workdirs.Workdir) -> int:
    from lrmil_jax.studies import plan
    from lrmil_jax.workspace import beam, layout, shards

    config, folder, stages = _CONFIG.value, workdir.folder, _STAGES.value
    if plan.is_study(config):
        from lrmil_jax.studies import study as runner
    else:
        from lrmil_jax import pipeline as runner
    if _SHARD.value is not None:
        alone = shards.joined(_SHARD.value, config, folder)
    elif _BEAM.value is not None:
        alone = beam.joined(_BEAM.value, config, folder)
    else:
        alone = layout.locked(folder)
    with alone:
        if _SHARD.value is None and _BEAM.value is None:
            shards.forget(folder)
        return runner.run(config, folder, stages, after_stage=workdir.save)


def _predict(workdir: Path) -> int:
    from lrmil_jax import config as configuration
    from lrmil_jax.patches import beside
    from lrmil_jax.workspace import layout

    given = _SLIDE, _SLIDES, _FOLDER, _ANNOTATIONS
    paths = {flag.name: flag.value and Path(flag.value) for flag in given}
    config = configuration.default() if _CONFIG.value is None else _CONFIG.value
    with beside.configured_readers(config) as readers:
        readers.begin()  # it starts while the rest is imported and the model is loaded
        from lrmil_jax import checks, programs
        from lrmil_jax.stages import predict

        programs.keep()
        checks.validate(config, ["pretrain"])  # its label table is not read
        with layout.locked(workdir):
            return predict.run(
                Path(_MODEL.value),
                workdir,
                **paths,
                mpp=_MPP.value,
                trust_mpp=_TRUST_MPP.value or config.data.trust_mpp,
                readers=readers,
                formats=_FORMATS.value,
                annotation_classes=_ANNOTATION_CLASSES.value,
            )


def _evaluate_external(workdir: Path) -> int:
    if _STAGES.value != ["evaluate"] or _MODEL.value is None:
        raise ConfigError(
            "--cohort CSV is for --stages evaluate --model DIR: it measures a trained model on "
            "slides that it has never seen"
        )
    from lrmil_jax import checks, programs
    from lrmil_jax.stages import external
    from lrmil_jax.workspace import layout

    programs.keep()
    if _CONFIG.value is not None:
        checks.validate(_CONFIG.value, ["pretrain"])  # its label table is not read
    with layout.locked(workdir):
        return external.run(Path(_MODEL.value), workdir, Path(_COHORT.value), _CONFIG.value)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses the command line; a mistake in a flag or in the config file is one sentence."""
    from lrmil_jax import config_files

    try:
        # ml_collections looks for overrides in sys.argv, whoever calls this.
        sys.argv = config_files.resolved(arguments)
        rest = flags.FLAGS(sys.argv)
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a config file that could not be loaded says so only here
    except (flags.Error, UserError, OSError, LookupError, AttributeError, TypeError, ValueError,
            SyntaxError) as error:  # fmt: skip
        from lrmil_jax import config as configuration

        sys.exit(configuration.explain(error))
    return rest


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
