"""What `lrmil --help` and `lrmil COMMAND --help` say, in lines of at most 80 columns."""

import dataclasses
import textwrap
from collections.abc import Mapping

_WIDTH = 79


@dataclasses.dataclass(frozen=True, kw_only=True)
class Help:
    """One command's help.

    Attributes:
      summary: in a line of the overview.
      usage: what follows the command's name, a line for each way of use.
      about: a paragraph.
      options: each with what it means.
      example: whole commands.
    """

    summary: str
    usage: tuple[str, ...]
    about: str
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    example: tuple[str, ...]


_CONFIG = {
    "--config": "a config that comes along (`lrmil init` lists them), FILE.py or FILE.yaml; "
    "`:tiny` after it shrinks it to a minute's test",
    "--workdir": "folder for all output, also of a bucket; the same again goes on where it was",
    "--config.KEY=VALUE": "changes one key (`lrmil keys` lists them)",
}
_MODEL = {
    "--model": "model folder of a finished run",
    "--workdir": "folder for all output",
}

COMMANDS: Mapping[str, Help] = {
    "run": Help(
        summary="everything from slides to a model and its report",
        usage=("--config NAME --workdir DIR [--stages A,B] [--config.KEY=VALUE ...]",),
        about="Runs the stages of a config in order, skips those that are done, and goes on where "
        "a killed run was.",
        options=_CONFIG
        | {
            "--stages": "only these, such as teacher,distill",
            "--scratch": "of a --workdir in a bucket: the folder in which this host works on it",
            "--shard": "i/n: only this part of the slides, of stages done slide by slide",
            "--beam_pipeline_options": "name=value,...: prepare by a job of Apache Beam",
            "--left_out_ok": "exit status 0 where slides were left out, for schedulers",
            "--coordinator": "several machines as one run: HOST:PORT of the first, or auto under "
            "Slurm and on TPU slices",
            "--processes": "with HOST:PORT: how many there are",
            "--process": "with HOST:PORT: which this is, from 0",
        },
        example=(
            "lrmil run --config quickstart --workdir runs/first",
            "lrmil run --config tcga_nsclc --workdir runs/nsclc "
            "--config.data.labels=labels.csv --config.data.slides=slides/",
        ),
    ),
    "check": Help(
        summary="every problem of slides, labels and weights, before a long run",
        usage=("--config NAME --workdir DIR [--config.KEY=VALUE ...]",),
        about="Opens every slide, draws its tissue, and tells all problems at once, and the disk "
        "and time that the run will take. Exit status 1 if there is a problem.",
        options=_CONFIG,
        example=(
            "lrmil check --config tcga_nsclc --workdir runs/nsclc "
            "--config.data.labels=labels.csv --config.data.slides=slides/",
        ),
    ),
    "predict": Help(
        summary="a trained model on new slides",
        usage=(
            "--model DIR --slide FILE --workdir DIR",
            "--model DIR --slides PATH [--folder DIR] --workdir DIR",
        ),
        about="Prediction, heatmap and attention of each slide, in DIR/predictions. With labels in "
        "the CSV also metrics.",
        options=_MODEL
        | {
            "--slide": "one slide file",
            "--slides": "a folder of slides, or a CSV with slide_id[,path][,mpp][,label]",
            "--folder": "where the slides of the CSV lie, if not beside it",
            "--mpp": "um/px of --slide, if the file's is missing or wrong",
            "--trust_mpp": "the um/px given win even against file and objective",
            "--annotations": "a folder of QuPath's SLIDE.geojson, or a file: patches inside alone",
            "--annotation_classes": "classifications in it that count, such as Tumor",
            "--formats": "files for viewers, geojson by default; docs/viewers.md has them all",
        },
        example=("lrmil predict --model runs/nsclc/model --slide a.svs --workdir out",),
    ),
    "evaluate": Help(
        summary="a model on a cohort that it never saw; figures from predictions",
        usage=(
            "--model DIR --cohort CSV --workdir DIR",
            "predictions.csv [...] [--output DIR] [--sensitivity S] [--subgroups A,B]",
            "compare A/predictions.csv B/predictions.csv [--model M] [--other M]",
        ),
        about="With --cohort: a trained model on labelled slides that it has never seen. With "
        "files: every figure again, calibration, decision curves and subgroups, from predictions "
        "alone; `compare`: one model's figures less another's, on the same patients.",
        options=_MODEL
        | {
            "--cohort": "label CSV of the new slides",
            "--output": "where to write; by default beside the first file",
            "--sensitivity": "wanted of a threshold, 0.95 by default",
            "--subgroups": "columns of the files, such as site,sex",
            "--other": "of compare: model of the second file; --model is the first file's",
            "--bootstrap": "of compare: draws, 1000 by default; 0 leaves it out",
        },
        example=(
            "lrmil evaluate --model runs/nsclc/model --cohort other.csv --workdir out",
            "lrmil evaluate runs/nsclc/folds/*/evaluate/predictions.csv",
        ),
    ),
    "serve": Help(
        summary="a trained model over HTTP: slides in, predictions out",
        usage=("--model DIR --jobs DIR [--slides DIR ...] [--port N] [...]",),
        about="Takes slides as uploads or by their paths, predicts one after the other with one "
        "loaded model, and keeps jobs and results in a folder, so that a kill loses none. Listens "
        "to this machine alone unless --host says otherwise. Needs pip install "
        "'lrmil_jax[serve]'.",
        options={
            "--model": "model folder of a finished run",
            "--jobs": "folder for jobs and results, on a disk of this machine",
            "--slides": "folder below which slides may be named by path; may be given again",
            "--host": "address to listen at, 127.0.0.1 by default; any other needs a token",
            "--port": "8000 by default; 0: any that is free",
            "--token_file": "holds what clients must bring; or in LRMIL_SERVE_TOKEN",
            "--queue": "jobs that may wait, 100 by default",
            "--max_upload_gib": "largest slide to upload, 16 by default",
            "--keep_hours": "after which results are removed, 168 by default",
            "--seconds_per_slide": "that reading may hang, 3600 by default; 0: any",
            "--stop_seconds": "that SIGTERM leaves to the slide in hand, 20 by default",
        },
        example=("lrmil serve --model runs/nsclc/model --jobs jobs --slides slides",),
    ),
    "verify": Help(
        summary="whether a prediction comes out of its model again",
        usage=("MODEL PREDICTION [--slide FILE]",),
        about="Computes the prediction of a slide again from its file and tells every difference. "
        "Exit status 1 if there is one.",
        options={"--slide": "the slide's file, if it has moved"},
        example=("lrmil verify runs/nsclc/model out/predictions/a",),
    ),
    "report": Help(
        summary="the report of a finished run again",
        usage=("--config NAME --workdir DIR [--config.report.KEY=VALUE ...]",),
        about="Writes DIR/report again, where something of it changed; trains nothing.",
        options=_CONFIG,
        example=("lrmil report --config quickstart --workdir runs/first",),
    ),
    "import": Help(
        summary="features of TRIDENT, CLAM, STAMP ... in place of slides",
        usage=("--config NAME --workdir DIR --config.data.features=FOLDER [...]",),
        about="Takes over another tool's features; `lrmil run` with the same options does so too, "
        "and then trains.",
        options=_CONFIG,
        example=(
            "lrmil import --config tcga_nsclc --workdir runs/uni --config.method=mil "
            "--config.data.labels=labels.csv --config.data.features=trident/features_uni "
            "--config.encoder.name=uni",
        ),
    ),
    "export": Help(
        summary="the run's features as files of such a tool",
        usage=("--config NAME --workdir DIR --config.export.format=FORMAT",),
        about="Writes DIR/export with the features of a finished run; FORMAT is trident, clam, "
        "stamp, slideflow, slide2vec, atlaspatch, npy, npz or pt.",
        options=_CONFIG,
        example=("lrmil export --config quickstart --workdir runs/first "
                 "--config.export.format=trident",),
    ),
    "convert": Help(
        summary="a trained model as StableHLO or ONNX, for other programs",
        usage=("MODEL OUTPUT [--format stablehlo|onnx]",),
        about="Writes each member's encoder (uint8 tiles to features) and head (features to "
        "prediction and attention); for StableHLO also a reader that needs jax and numpy alone. "
        "ONNX needs pip install 'lrmil_jax[onnx]'.",
        options={"--format": "stablehlo (default), for CPU, CUDA and TPU; or onnx"},
        example=("lrmil convert runs/nsclc/model exported",),
    ),
    "init": Help(
        summary="the configs that come along; a copy of one, to edit",
        usage=("", "NAME [FILE.py]"),
        about="Without a name: a list. With one: a copy, which runs from where it lies; a file "
        "that is there is never overwritten.",
        example=("lrmil init tcga_nsclc mine.py", "lrmil run --config mine.py --workdir runs/mine"),
    ),
    "keys": Help(
        summary="every key of the config, its default and what it means",
        usage=("[WORD]",),
        about="Keys that contain the word, or all.",
        example=("lrmil keys student.lambda",),
    ),
    "encoders": Help(
        summary="the published encoders that a config can name",
        usage=("[NAME]",),
        about="Without a name: a line for each. With one: all that is recorded of it, and where "
        "to ask for its weights, which are never downloaded.",
        example=("lrmil encoders uni",),
    ),
    "descriptions": Help(
        summary="a file of class descriptions, checked",
        usage=("FILE.toml [--encoder NAME] [--weights FILE] [--tokenizer PATH]",),
        about="With a text tower also how many tokens each sentence has, and whether the tower "
        "tells the classes apart.",
        options={
            "--encoder": "image encoder that the tower belongs to",
            "--weights": "its weights, its text tower's, or shipped:NAME",
            "--tokenizer": "file or folder, for a published tower",
        },
        example=("lrmil descriptions shipped:tcga_nsclc",),
    ),
    "doctor": Help(
        summary="whether this machine and installation can run it",
        usage=("",),
        about="Python, JAX and its devices, readers, disk, memory, threads, and a short test of "
        "computing and decoding. Exit status 1 if something that is needed does not work.",
        example=("lrmil doctor",),
    ),
}  # fmt: skip


def overview() -> str:
    """Every command with its summary."""
    width = max(map(len, COMMANDS))
    lines = ["Usage: lrmil COMMAND [OPTIONS]", ""]
    lines += ["Slide classification from low-resolution patches: LRMIL and WISE-FUSE.", ""]
    lines += [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "`lrmil COMMAND --help` says more of each. To begin with:", "  lrmil doctor",
              "  lrmil run --config quickstart --workdir runs/first"]  # fmt: skip
    return "\n".join(lines)


def of_command(name: str) -> str:
    """Usage, options and an example of one command; an unknown name gives the overview."""
    if name not in COMMANDS:
        return overview()
    command = COMMANDS[name]
    lines = []
    for number, usage in enumerate(command.usage):
        head = f"{'      ' if number else 'Usage:'} lrmil {name} "
        lines.append(_wrapped(head, usage))
    lines += ["", textwrap.fill(command.about, _WIDTH), ""]
    lines += [_wrapped(f"  {option:<20}", text) for option, text in command.options.items()]
    lines += [""] * bool(command.options)
    lines += ["Example:", *(_shell(example) for example in command.example)]
    return "\n".join(lines)


def _wrapped(head: str, text: str) -> str:
    """The text behind a head, its further lines below its first."""
    return (
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=head,
            subsequent_indent=" " * len(head),
            break_long_words=False,
            break_on_hyphens=False,
        )
        or head.rstrip()
    )


def _shell(command: str) -> str:
    """A command over several lines, as a shell takes it."""
    lines = textwrap.wrap(command, _WIDTH - 6, break_long_words=False, break_on_hyphens=False)
    return " \\\n      ".join([f"  {lines[0]}", *lines[1:]])
