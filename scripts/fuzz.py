"""Feeds damaged bytes to everything that reads files of others, and keeps what goes wrong.

    python scripts/fuzz.py slide --seconds 120 --findings /tmp/findings

Anything but success or a `UserError` is a finding, also more than 10 s or 1 GiB. Each is kept once,
by the place where it was raised. Guided by coverage where atheris is installed (pip install
atheris), else by plain mutations of the seeds.
"""

import argparse
import contextlib
import gzip
import io
import json
import logging
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

with (
    atheris.instrument_imports(include=["lrmil_jax", "tifffile", "tomllib"])
    if atheris
    else (contextlib.nullcontext())
):
    import numpy as np
    import pandas as pd
    import safetensors.numpy
    import tifffile

    from lrmil_jax import config as configuration
    from lrmil_jax.data import clam_splits, labels, layouts, param_files, slide_files, split_files
    from lrmil_jax.data.splits import Protocol
    from lrmil_jax.encoders import pretrained, text_files
    from lrmil_jax.errors import UserError
    from lrmil_jax.models import model_folder
    from lrmil_jax.selection import text_bank
    from lrmil_jax.slides import Annotations, open_slide
    from lrmil_jax.slides import annotations as drawn_regions
    from lrmil_jax.tasks import prediction_files
    from lrmil_jax.workspace import cohorts

_SECONDS, _BYTES = 10, 1 << 30
_FOLDER = Path(
    tempfile.mkdtemp(prefix="fuzz_", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
)
_SLIDES = [f"s{i}" for i in range(24)]
_PART = b"\n--part--\n"


def _file(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def slide(data: bytes) -> None:
    """The slide reader: opening, a thumbnail, a region."""
    with open_slide(_file("slide.tif", data), mpp=0.5) as one:
        one.thumbnail(2.0)
        one.read((3, 5), 16, 32)


def table(data: bytes) -> None:
    """The label table, by every layout, with its folds."""
    path = _file("labels.csv", data)
    config = configuration.default()
    config.folds = 2
    sources = layouts.Sources(path, _FOLDER / "slides")
    labels.problems(sources, cohorts.read_task(config))
    labels.read_cohort(sources, cohorts.read_task(config), Protocol(folds=2, seed=0))


def _two_tables(names: tuple[str, str], data: bytes) -> None:
    """Two files whose bytes stand behind each other, parted by a line of _PART."""
    first, _, second = data.partition(_PART)
    path, beside = _file(names[0], first), _file(names[1], second)
    config = configuration.default()
    config.folds = 2
    sources = layouts.Sources(path, _FOLDER / "slides", slide_table=beside)
    labels.read_cohort(sources, cohorts.read_task(config), Protocol(folds=2, seed=0))


def stamp(data: bytes) -> None:
    """STAMP's clini table and slide table."""
    _two_tables(("clini.csv", "slide.csv"), data)


def patho_bench(data: bytes) -> None:
    """Patho-Bench's split table and the config beside it."""
    folder = _FOLDER / "bench"
    folder.mkdir(exist_ok=True)
    _two_tables(("bench/k=all.tsv", "bench/config.yaml"), data)


def tokenizer(data: bytes) -> None:
    """A tokenizer of a published text tower, in the file that its first bytes belong in."""
    folder = _FOLDER / "tokenizer"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    first, parted, merges = data.partition(_PART)
    name = text_files.OPENAI_VOCABULARY if first[:2] == b"\x1f\x8b" else "tokenizer.json"
    if parted:
        name = "vocab.json"
        _file("tokenizer/merges.txt", merges)
    _file(f"tokenizer/{name}", first)
    text_files.read_tokenizer(folder).encode(["a tumour of 3 mm"], limit=77)


def slide_list(data: bytes) -> None:
    """The list of slides to predict."""
    slide_files.read_list(_file("list.csv", data), _FOLDER / "slides")


def split_json(data: bytes) -> None:
    """STAMP's splits."""
    frame = pd.DataFrame({"patient_id": _SLIDES, "slide_id": _SLIDES})
    split_files.with_splits(frame, _file("splits.json", data), _FOLDER / "labels.csv")


def split_csv(data: bytes) -> None:
    """CLAM's splits."""
    folder = _FOLDER / "splits"
    folder.mkdir(exist_ok=True)
    _file("splits/splits_0.csv", data)
    frame = pd.DataFrame({"patient_id": _SLIDES, "slide_id": _SLIDES})
    clam_splits.with_splits(frame, folder, _FOLDER / "labels.csv")


def predictions(data: bytes) -> None:
    """Another tool's predictions.csv."""
    prediction_files.read_with_validation(_file("predictions.csv", data))


def model(data: bytes) -> None:
    """What a model folder says of itself."""
    folder = _FOLDER / "model"
    folder.mkdir(exist_ok=True)
    _file("model/model.json", data)
    model_folder.load(folder)


def descriptions(data: bytes) -> None:
    """Descriptions of classes."""
    bank = text_bank.TextBank.load(_file("classes.toml", data))
    bank.only(tuple(bank.classes)[:2]).sentences("both")
    bank.digest  # noqa: B018


def annotations(data: bytes) -> None:
    """What was drawn in QuPath, as a mask of a slide of 4,000 x 3,000 px."""
    drawn = Annotations(_file("s.geojson", data), ("Tumor",), "s")
    drawn_regions.mask(drawn.polygons((4000, 3000), (8, 8, 3000, 2000)), (100, 75), (40, 40))


def weights(data: bytes) -> None:
    """Weights of a publisher or of a trained head."""
    path = _file("weights.safetensors", data)
    for read in (
        param_files.load_params,
        pretrained.read_tensors,
        pretrained.stored_options,
        lambda one: pretrained.load("vit-tiny", one),
    ):
        with contextlib.suppress(UserError):
            read(path)


def _slide_seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    text = (
        "Aperio Image Library v12\r\n64x48 [0,0 64x48] (16x16) JPEG/RGB Q=9|AppMag = 20|MPP = 0.5"
    )
    seeds = []
    for packing in (None, "jpeg", "lzw", "deflate", "jpeg2000", "packbits"):
        for big, tile, description in ((False, 16, text), (True, 16, None), (False, None, None)):
            out = io.BytesIO()
            with contextlib.suppress(ValueError), tifffile.TiffWriter(out, bigtiff=big) as writer:
                for level in (pixels, pixels[::4, ::4]):
                    layout = {"tile": (tile, tile)} if tile else {"rowsperstrip": 16}
                    writer.write(level, compression=packing, photometric="rgb", metadata=None,
                                 description=description, resolution=(20000, 20000),
                                 resolutionunit="CENTIMETER", **layout)  # fmt: skip
                seeds.append(out.getvalue())
    return seeds


def _csv(*rows: str) -> bytes:
    return ("\n".join(rows) + "\n").encode()


def _table_seeds() -> list[bytes]:
    of = list(enumerate(_SLIDES))
    parts = ("train", "train", "val", "val", "test", "test")
    return [
        _csv("slide_id,patient_id,label,path,mpp",
             *(f"{name},p{i},{'ab'[i % 2]},{name}.tif,0.5" for i, name in of)),
        _csv("slide_id,case_id,label,fold_1,fold_2",
             *(f"{name},p{i},{'ab'[i % 2]},{parts[i % 6]},{parts[-i % 6]}" for i, name in of)),
        _csv("slide_id,patient_id,label,split",
             *(f'"{name}",p{i},{"ab"[i % 2]},{parts[i % 6]}' for i, name in of)),
        _csv("slide_id,patient_id,label", '"s0",p0,"a,""b"""', "s1;p1;c", "s2\tp2\td"),
    ]  # fmt: skip


def _stamp_seeds() -> list[bytes]:
    of = list(enumerate(_SLIDES))
    clini = _csv("PATIENT,label,SITE", *(f"p{i},{'ab'[i % 2]},x{i % 3}" for i in range(20)))
    slides = _csv("PATIENT,FILENAME", *(f"p{i % 20},{name}.h5" for i, name in of))
    return [clini + _PART + slides, clini + _PART + slides.replace(b",", b";")]


def _patho_bench_seeds() -> list[bytes]:
    parts = ("train", "train", "test")
    rows = [f"c{i},{name},{i % 2},{parts[i % 3]},{parts[-i % 3]}" for i, name in enumerate(_SLIDES)]
    table = _csv("case_id,slide_id,grade,fold_0,fold_1", *rows).replace(b",", b"\t")
    config = (
        b"task_col: grade\nsample_col: case_id\nextra_cols: []\nmetrics: [auc]\nlabel_dict:\n"
        b"  0: low\n  1: high\n"
    )
    return [table + _PART + config, table + _PART + config.replace(b"0: low", b"low: 0")]


def _tokenizer_seeds() -> list[bytes]:
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        "a",
        "t",
        "u",
        "m",
        "o",
        "r</w>",
        "tu",
        "a</w>",
        "or</w>",
    ]
    numbers = {word: number for number, word in enumerate(words)}
    model = {"type": "BPE", "vocab": numbers, "merges": ["t u"], "end_of_word_suffix": "</w>"}
    added = [{"id": i, "content": words[i], "special": True, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False} for i in (0, 1)]  # fmt: skip
    whole = {"version": "1.0", "added_tokens": added, "normalizer": {"type": "Lowercase"},
             "pre_tokenizer": {"type": "Whitespace"}, "model": model}  # fmt: skip
    parts = json.dumps(numbers).encode() + _PART + b"#version: 0.2\nt u\no r</w>\n"
    packed = gzip.compress(b"#version: 0.2\n" + b"a b\nb c</w>\nt u\n" * 9, mtime=0)
    return [json.dumps(whole).encode(), parts, packed]


def _prediction_seeds() -> list[bytes]:
    head = "slide_id,patient_id,case_id,model,split,task,fold,label,prob_a,prob_b"
    named = "classification,1"
    rows = [f"s{i},p{i},c{i},m,{'test' if i else 'val'},{named},{'ab'[i % 2]},0.{i},0.{9 - i}"
            for i in range(6)]  # fmt: skip
    numbers = [f"s{i},0.{i},1.{i}" for i in range(6)]
    return [_csv(head, *rows), _csv("slide_id,number,predicted_number", *numbers)]


def _model_seeds() -> list[bytes]:
    facts = {
        "schema": 4,
        "members": ["1"],
        "sha256": {},
        "geometry": {"lr_mpp": 2.0, "hr_mpp": 0.5, "patch_px": 256},
        "prepare": {"min_tissue": 0.1},
        "encoder": {"name": "vit-tiny", "batch": 8, "dtype": "float32"},
        "features_dtype": "float16",
        "thresholds": {"youden": 0.5},
        "temperature": 1.0,
        "guided": {"seed": 1},
    }
    return [json.dumps(facts).encode(), json.dumps(facts | {"high": True, "schema": 3}).encode()]


def _annotation_seeds() -> list[bytes]:
    ring = [[0, 0], [900, 0], [900, 900], [0, 900], [0, 0]]
    hole = [[90, 90], [500, 90], [400, 300], [90, 90]]
    feature = {"type": "Feature", "id": "0", "geometry": {"type": "Polygon",
               "coordinates": [ring, hole]}, "properties": {"objectType": "annotation",
               "classification": {"name": "Tumor", "color": [1, 2, 3]}}}  # fmt: skip
    parts = feature | {"geometry": {"type": "MultiPolygon", "coordinates": [[ring], [hole]]}}
    whole = {
        "type": "FeatureCollection",
        "features": [feature, parts],
        "properties": {"slide": "s"},
    }
    return [json.dumps(one).encode() for one in (whole, [feature, parts], feature)]


def _weight_seeds() -> list[bytes]:
    about = json.dumps({"head": "abmil", "options": {}, "task": {"name": "classification"},
                        "format": pretrained.FORMAT, "name": "vit-tiny"})  # fmt: skip
    arrays = {"head/kernel": np.zeros((2, 3), np.float32), "standardise/mean": np.ones(3)}
    return [safetensors.numpy.save(arrays, {"lrmil_jax": about}), safetensors.numpy.save(arrays)]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "slide": (slide, _slide_seeds),
    "table": (table, _table_seeds),
    "slide_list": (slide_list, _table_seeds),
    "stamp": (stamp, _stamp_seeds),
    "patho_bench": (patho_bench, _patho_bench_seeds),
    "tokenizer": (tokenizer, _tokenizer_seeds),
    "split_json": (
        split_json,
        lambda: [b'{"splits": [{"train_patients": ["s0", "s1"], "test_patients": ["s2"]}]}'],
    ),
    "split_csv": (
        split_csv,
        lambda: [
            _csv(",train,val,test", "0,s0,s2,s4", "1,s1,s3,"),
            _csv(",train,val,test", "0,s5,s0,s1"),
        ],
    ),
    "predictions": (predictions, _prediction_seeds),
    "model": (model, _model_seeds),
    "descriptions": (
        descriptions,
        lambda: [path.read_bytes()
                 for path in Path(text_bank.__file__).parent.glob("descriptions/*.toml")]
        + [b'task = "x"\ntemplates = ["{}"]\n[a]\nlow = ["one"]\n[b]\nhigh = ["two"]\n'],
    ),
    "weights": (weights, _weight_seeds),
    "annotations": (annotations, _annotation_seeds),
}  # fmt: skip


class _Watch:
    """Calls a target within limits, keeps each finding once, and tells all at the end."""

    def __init__(self, target: Callable[[bytes], None], findings: Path, *, seconds: int):
        self._target, self._findings = target, findings
        self._end, self.told = time.monotonic() + seconds, False
        self._places: dict[str, int] = {}
        self.runs = self.refused = 0
        findings.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGALRM, self._late)
        with open("/proc/self/statm") as pages:
            used = int(pages.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _BYTES, resource.RLIM_INFINITY))

    @staticmethod
    def _late(*_: object) -> None:
        raise TimeoutError(f"not done after {_SECONDS} s")

    def __call__(self, data: bytes) -> None:
        if self.told:
            return
        self.runs += 1
        signal.alarm(_SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._target(data)
        except UserError as error:
            self.refused += 1
            if "\n" in str(error):
                self._keep(data, error)
        except Exception as error:
            self._keep(data, error)
        finally:
            signal.alarm(0)
        if time.monotonic() > self._end:
            self.told = True
            self._tell()
            shutil.rmtree(_FOLDER)

    def _keep(self, data: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "lrmil_jax" in f.filename] or frames
        place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        self._places[place] = self._places.get(place, 0) + 1
        if self._places[place] == 1:
            name = f"{self._target.__name__}_{len(self._places)}"
            (self._findings / name).write_bytes(data)
            last = frames[-1]
            print(f"FINDING {name}: {place} ({Path(last.filename).name}:{last.lineno}): "
                  f"{' '.join(str(error).split())[:200]}", flush=True)  # fmt: skip

    def _tell(self) -> None:
        print(f"{self._target.__name__}: {self.runs} runs, {self.refused} refused in a sentence, "
              f"{len(self._places)} findings {self._places}", flush=True)  # fmt: skip


def _mutated(rng: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with a few bytes changed, cut out, doubled or taken from another seed."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 4, 16, 64)))
        other = rng.choice(seeds)
        place = rng.randrange(len(other) + 1)
        data[start:end] = rng.choice((
            rng.randbytes(end - start), b"", bytes(end - start), b"\xff" * (end - start),
            bytes(data[start:end]) * 2, other[place : place + end - start],
            rng.choice((b'"', b",", b"\n", b"nan", b"-1", b"1e400", b"null", b"[", b"{", b"\0")),
        ))  # fmt: skip
    return bytes(data)


def main() -> None:
    """Runs one target for so many seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"))
    parser.add_argument("--plain", action="store_true", help="no coverage, though atheris is there")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    (_FOLDER / "slides").mkdir()
    for name in _SLIDES:
        _file(f"slides/{name}.tif", b"II*\0")
    target, make_seeds = TARGETS[arguments.target]
    seeds = make_seeds()
    watch = _Watch(target, arguments.findings, seconds=arguments.seconds)
    for data in seeds:
        watch(data)
    print(f"{len(seeds) - watch.refused} of {len(seeds)} seeds are read", flush=True)
    if atheris is None or arguments.plain:
        rng = random.Random(arguments.seed)
        while not watch.told:
            watch(_mutated(rng, seeds))
        return
    corpus = _FOLDER / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds):
        (corpus / str(number)).write_bytes(data)
    options = [f"-max_total_time={arguments.seconds + 1}", f"-seed={arguments.seed + 1}",
               "-max_len=65536", "-rss_limit_mb=8192", str(corpus)]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], watch)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
