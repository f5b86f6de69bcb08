"""The command line: every figure of metrics.json again from predictions.csv, and comparisons."""

import contextlib
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from lrmil_jax import tasks
from lrmil_jax.evals import __main__ as program
from lrmil_jax.tasks import evaluation, prediction_files
from tests.tasks import simulated
from tests.tasks.test_prediction_files import TASKS

PNG = b"\x89PNG"


def evaluated(folder, name, fold=1, models=("teacher", "lrmil")):
    """What the stage leaves of a fold: both tables, and metrics.json."""
    sides = [simulated.rows(name, fold=fold, split=split, patients=40, models=models)
             for split in ("test", "val")]  # fmt: skip
    prediction_files.write(folder, *sides)
    measured = {}
    for model in models:
        test, validation = (side[side.model == model] for side in sides)
        task = tasks.of_columns(test)
        measured[model] = evaluation.evaluate(task, test, validation, sensitivity=0.9)
    return json.loads(json.dumps(measured)), folder / "predictions.csv"


@pytest.mark.parametrize("name", TASKS)
def test_every_figure_is_recomputed_equal(name, tmp_path):
    measured, path = evaluated(tmp_path, name, models=("lrmil",))
    found = program.figures(*program.read([path]), sensitivity=0.9)
    assert json.loads(json.dumps(found))["folds"] == {"1": measured}


@pytest.fixture(scope="module")
def two_folds(tmp_path_factory):
    """Two folds of two models, evaluated by the program: metrics.json of each, where all lies, and
    what was printed."""
    folder = tmp_path_factory.mktemp("folds")
    folds = [evaluated(folder / str(fold), "binary", fold) for fold in (1, 2)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        arguments = [*(str(path) for _, path in folds), "--output", str(folder / "out")]
        assert program.main([*arguments, "--sensitivity", "0.9"]) == 0
    return [measured for measured, _ in folds], folder, printed.getvalue()


def test_folds_are_put_together(two_folds):
    measured, folder, printed = two_folds
    found = json.loads((folder / "out/evaluation.json").read_text())
    assert found["folds"] == {"1": measured[0], "2": measured[1]}
    over = found["over_folds"]["lrmil"]
    folds = [one["lrmil"]["metrics"]["auc"] for one in measured]
    assert over["auc"] == pytest.approx(sum(folds) / 2)
    assert over["auc_folds"] == 2
    assert "LRMIL" in printed
    assert "Subgroups of test patients" in printed


def test_tables_and_pictures(two_folds):
    folder = two_folds[1] / "out"
    table = pd.read_csv(folder / "subgroups.csv")
    assert set(table.model) == {"teacher", "lrmil"}
    assert {"value", "value_low", "difference_high", "note"} <= set(table)
    assert (folder / "subgroups.md").read_text().startswith("| model | subgroup | patients |")
    curve = pd.read_csv(folder / "decision_curve.csv")
    assert {"model", "threshold", "benefit", "benefit_low", "all", "beyond_high"} <= set(curve)
    pictures = sorted(folder.glob("*.png"))
    assert [one.name for one in pictures] == ["decision_curve.png", "reliability.png"]
    assert all(one.read_bytes()[:4] == PNG for one in pictures)


def test_a_fold_counts_once(two_folds, capsys):
    path = str(two_folds[1] / "1/predictions.csv")
    assert program.main([path, path]) == 1
    assert "is there twice under the model" in capsys.readouterr().err


def test_what_a_binary_evaluation_holds(two_folds):
    found = two_folds[0][0]["lrmil"]
    assert found.keys() == {
        *("title", "patches", "patients", "metrics", "intervals", "validation"),
        *("thresholds", "calibration", "net_benefit", "subgroups"),
    }
    calibration = found["calibration"]
    assert calibration["temperature"] > 0
    assert calibration["tempered"]["null"]["brier"] > 0
    assert [row["threshold"] for row in found["net_benefit"]][:2] == [0.05, 0.1]
    assert {row["subgroup"] for row in found["subgroups"]} == {"site", "scanner"}


def test_numbers_have_no_picture(tmp_path, capsys):
    _, path = evaluated(tmp_path, "regression", models=("lrmil",))
    (tmp_path / "validation.csv").unlink()
    assert program.main([str(path), "--subgroups", "number"]) == 0
    assert not list((tmp_path / "evaluation").glob("*.png"))
    found = json.loads((tmp_path / "evaluation/evaluation.json").read_text())["folds"]["1"]
    assert "validation" not in found["lrmil"]
    subgroups = {row["subgroup"] for row in found["lrmil"]["subgroups"]}
    assert subgroups == {"site", "scanner", "number"}
    assert "no threshold and no temperature is chosen" in capsys.readouterr().out


def test_compare(two_folds, tmp_path, capsys):
    one = two_folds[1] / "1/predictions.csv"
    rows = prediction_files.read(one)
    prediction_files.write(tmp_path, rows.assign(prob_null=0.5, prob_benign=0.5), rows)
    output = tmp_path / "compared.json"
    arguments = ["compare", str(one), str(tmp_path / "predictions.csv"), "--output", str(output)]
    assert program.main([*arguments, "--bootstrap", "20"]) == 0
    found = json.loads(output.read_text())
    assert set(found) == {"teacher", "lrmil"}
    assert found["lrmil"]["metrics"]["auc"]["other"] == 0.5
    assert found["lrmil"]["metrics"]["auc"]["bootstrap"]["draws"] == 20
    assert "DeLong: z" in capsys.readouterr().out
    within = ["compare", str(one), str(one), "--model", "lrmil", "--other", "teacher"]
    assert program.main([*within, "--bootstrap", "0"]) == 0
    assert "lrmil - teacher: 40 patients" in capsys.readouterr().out


def test_the_documented_example(tmp_path, monkeypatch, capsys):
    """docs/evaluation.md: its code makes the files, its commands print what stands there."""
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0], {})
    commands = re.findall(r"^python -m lrmil_jax\.evals (.*example.*)$", text, re.MULTILINE)
    outputs = [part.split("```")[0] for part in text.split("```text\n")[1:]]
    assert len(commands) == len(outputs) == 2
    for command, output in zip(commands, outputs, strict=True):
        assert program.main(command.split()) == 0
        printed = capsys.readouterr().out
        assert [line.strip() for line in output.splitlines() if line.strip()] == [
            line.strip() for line in printed.splitlines() if line.strip()
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["FILE", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["nothing.csv"], "nothing.csv does not exist"),
        (["FILE", "--sensitivity", "0"], "--sensitivity is 0"),
        (["FILE", "--subgroups", "sex"], "has no column sex; its columns are"),
        (["compare", "FILE"], "arguments are required"),
        (["compare", "FILE", "FILE"], "name the models to compare by --model and --other"),
        (["compare", "FILE", "FILE", "--model", "x"], "has no model x; it has teacher, lrmil"),
        (["compare", "FILE", "FILE", "--bootstrap", "-1"], "--bootstrap is -1"),
    ],
)
def test_mistakes_are_one_sentence(arguments, message, tmp_path, capsys):
    path = tmp_path / "predictions.csv"
    simulated.rows("binary", patients=20, models=("teacher", "lrmil")).to_csv(path, index=False)
    assert program.main([str(path) if one == "FILE" else one for one in arguments]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "evaluation").exists()
