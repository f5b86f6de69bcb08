"""scripts/compose_slides.py: both sources, one layout, and one sentence a mistake."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lrmil_jax.slides import open_slide

SCRIPT = Path(__file__).parents[2] / "scripts" / "compose_slides.py"


@pytest.fixture
def compose(monkeypatch, capsys):
    """Calls the script; gives its exit status, what it printed, and what it complained of."""
    spec = importlib.util.spec_from_file_location("compose_slides", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "setup_logging", lambda: None)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["compose_slides.py", *map(str, arguments)])
        try:
            status = module.main()
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, said.out, said.err.strip().splitlines()

    return call


@pytest.fixture
def fields(tmp_path):
    """Two classes of 20 fields."""
    rng = np.random.default_rng(0)
    for name in ("normal", "oscc"):
        (tmp_path / "fields" / name).mkdir(parents=True)
        for number in range(20):
            noise = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8))
            noise.save(tmp_path / "fields" / name / f"{number}.png")
    return tmp_path / "fields"


def check_layout(folder, count):
    """slides/, masks/ and labels.csv agree, and the positive slides alone have a lesion."""
    table = pd.read_csv(folder / "labels.csv")
    assert len(table) == count
    names = {"slides": ".tif", "masks": ".png"}
    for part, suffix in names.items():
        assert {p.name for p in (folder / part).iterdir()} == {i + suffix for i in table.slide_id}
    positive = sorted(table.label.unique())[-1]
    for slide_id, label in zip(table.slide_id, table.label, strict=True):
        mask = np.asarray(Image.open(folder / "masks" / f"{slide_id}.png"))
        assert mask.any() == (label == positive)
        with open_slide(folder / "slides" / f"{slide_id}.tif") as slide:
            assert slide.dimensions == mask.shape[::-1]
    return table


def test_procedural_slides(compose, tmp_path):
    out = tmp_path / "out"
    status, printed, _ = compose("--procedural", "--slides", 2, "--size_px", 256, "--output", out)
    assert (status, printed.strip()) == (0, str(out / "labels.csv"))
    check_layout(out, 2)
    first = (out / "slides" / "slide_0000.tif").read_bytes()
    flags = ("--procedural", "--slides", 2, "--size_px", 256, "--output", tmp_path / "other")
    assert compose(*flags, "--seed", 1)[0] == 0
    assert (tmp_path / "other" / "slides" / "slide_0000.tif").read_bytes() != first
    status, _, said = compose(*flags)
    assert status == 1
    assert len(said) == 1
    assert "use another folder" in said[0]


def test_slides_of_fields(compose, fields, tmp_path):
    flags = ("--tiles", fields, "--positive", "oscc", "--fields", 2, "--slides", 2, 2, 2)
    status, _, _ = compose(*flags, "--output", tmp_path / "out")
    assert status == 0
    table = check_layout(tmp_path / "out", 6)
    assert table.fold_1.value_counts().to_dict() == {"train": 2, "val": 2, "test": 2}
    assert (table.pool == table.fold_1).all()  # slides of a split share its fields
    assert len(list((tmp_path / "out" / "tiles" / "oscc").iterdir())) == 8 * 16


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ((), "give one of --procedural and --tiles"),
        (("--procedural", "--tiles", "x"), "give one of --procedural and --tiles"),
        (("--procedural", "--slides", 1, 1, 1), "one number of procedural slides"),
        (("--procedural", "--slides", 0), "--slides: 0 is not from 1"),
        (("--procedural", "--size_px", 100), "--size_px: 100 is not from 256"),
        (("--procedural", "--background", 2), "--background: 2 is not from 0 to 0.9"),
        (("--procedural", "--seed", -1), "--seed: -1 is not from 0"),
        (("--procedural", "--seed", "x"), "invalid int value: 'x'"),
        (("--tiles", "x"), "--tiles needs --positive"),
        (("--tiles", "x", "--positive", "a", "--shares", 1, 1, 0, 0), "add up to 2; they must"),
        (("--tiles", "/nowhere", "--positive", "a"), "/nowhere is no folder"),
    ],
)
def test_mistakes_are_one_sentence(compose, tmp_path, flags, sentence):
    status, _, said = compose(*flags, "--output", tmp_path / "out")
    assert status in (1, 2)
    assert sentence in said[-1]
    assert not (tmp_path / "out").exists()
