"""`lrmil`: what it prints, and what each command calls."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl import app, flags
from ml_collections import config_flags

from lrmil_jax import checks, command, command_help, config_files, main, verify, yaml_config
from lrmil_jax.evals import __main__ as evals
from lrmil_jax.models import exported
from lrmil_jax.selection import __main__ as selection
from lrmil_jax.serve import command as serve


def run(capsys, *arguments):
    status = command.main(arguments)
    streams = capsys.readouterr()
    return status, streams.out, streams.err


def test_every_command_has_a_help_of_80_columns_with_an_example(capsys):
    assert list(command.COMMANDS) == list(command_help.COMMANDS)
    for arguments in (["--help"], *([name, "--help"] for name in command.COMMANDS)):
        status, text, _ = run(capsys, *arguments)
        assert status == 0
        assert max(len(line) for line in text.splitlines()) <= 80
        if arguments != ["--help"]:
            assert f"Usage: lrmil {arguments[0]}" in text
            assert re.search(r"Example:\n  lrmil \w+", text)


def test_examples_are_of_the_command_that_they_explain():
    for name, text in command_help.COMMANDS.items():
        assert any(example.startswith(f"lrmil {name}") for example in text.example)
        assert all(example.split()[1] in command.COMMANDS for example in text.example)


EXAMPLES = [example for text in command_help.COMMANDS.values() for example in text.example]


@pytest.mark.parametrize("example", [one for one in EXAMPLES if "--config" in one])
def test_configs_of_the_examples_can_be_run(example, monkeypatch):
    if "mine.py" in example:
        example = example.replace("mine.py", "tcga_nsclc") + " --config.data.labels=labels.csv"
    before, name, after = re.fullmatch(r"lrmil (\w+) --config (\S+) (.*)", example).groups()
    arguments = [before, *after.split()]
    monkeypatch.setattr(sys, "argv", arguments)  # where ml_collections looks for keys
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    config = config_flags.DEFINE_config_dict("config", config_files.load(name), flag_values=values)
    assert values(arguments) == [before]
    checks.validate(config.value)


def test_options_in_the_help_are_those_of_the_programs(capsys):
    programs = {"evaluate": [evals.parse, lambda _: evals.parse(["compare", "--help"])],
                "descriptions": [selection.parse], "verify": [verify.main],
                "convert": [exported.main], "serve": [serve.main]}  # fmt: skip
    shared = {f"--{name}" for name in main.flags.FLAGS} | {"--config.KEY=VALUE"}
    for name, text in command_help.COMMANDS.items():
        for program in programs.get(name, ()):
            with pytest.raises(SystemExit):
                program(["--help"])
        options = set(re.findall(r"--\w+", capsys.readouterr().out))
        assert text.options.keys() <= shared | options, name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["chek"], "no command 'chek'; did you mean check?"),
        (["zzz"], "no command 'zzz' (`lrmil --help`"),
        (["check", "--stages=report"], "--stages is an option of lrmil run"),
        (["export", "-stages", "report"], "--stages is an option of lrmil run"),
        (["doctor", "now"], "lrmil doctor takes no 'now'"),
        (["encoders", "--all"], "lrmil encoders takes no '--all'"),
        (["encoders", "unii"], "did you mean 'uni'"),
        (["keys", "lambda_bagg"], "did you mean student.lambda_bag"),
        (["init", "nsclc"], "did you mean tcga_nsclc or wise_fuse_tcga_nsclc"),
        (["evaluate", "--foo"], "see lrmil evaluate --help"),
        (["verify"], "see lrmil verify --help"),
        (["serve"], "see lrmil serve --help"),
        (["descriptions"], "see lrmil descriptions --help"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_1(arguments, sentence, capsys):
    status, out, err = run(capsys, *arguments)
    assert status == 1
    assert sentence in err
    assert err.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        (["run", "--config", "X"], ["--config", "X"]),
        (["--config", "X"], ["--config", "X"]),
        (["check", "--config.seed=1"], ["--config.seed=1", "--stages=check"]),
        (["predict", "--slide", "a"], ["--slide", "a", "--stages=predict"]),
        (["evaluate", "--cohort=c"], ["--cohort=c", "--stages=evaluate"]),
        (["report"], ["--stages=report"]),
        (["check", "--workdir", "stages"], ["--workdir", "stages", "--stages=check"]),
        (["import"], ["--stages=prepare,import_features"]),
        (["export"], ["--stages=export"]),
    ],
)
def test_commands_of_runs_are_flags_of_main(arguments, flags, monkeypatch):
    given = {}
    monkeypatch.setattr(app, "run", lambda job, argv, flags_parser: given.update(
        job=job, argv=argv, parser=flags_parser) or 0)  # fmt: skip
    assert command.main(arguments) == 0
    assert given == {"job": main.main, "argv": ["lrmil", *flags], "parser": main.parse_flags}


def test_a_word_of_a_flag_may_be_a_value(monkeypatch):
    given = []
    monkeypatch.setattr(evals, "main", lambda arguments, prog: given.append(arguments) or 0)
    assert command.main(["evaluate", "p.csv", "--output", "cohort"]) == 0
    assert given == [["p.csv", "--output", "cohort"]]


def test_without_a_command_the_help_is_shown_and_the_status_is_1(capsys):
    status, text, _ = run(capsys)
    assert status == 1
    assert text.startswith("Usage: lrmil COMMAND")


def test_help_of_a_command_either_way(capsys):
    for arguments in (("help", "predict"), ("--help", "predict"), ("-h", "predict")):
        assert run(capsys, *arguments) == run(capsys, "predict", "-h")
    assert run(capsys, "--version")[1].startswith("lrmil_jax ")


def test_init_lists_and_copies(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = run(capsys, "init")[1]
    assert "sweeps/distillation_weights" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    status, text, _ = run(capsys, "init", "sweeps/distillation_weights")
    assert status == 0
    assert (tmp_path / "distillation_weights.py").is_file()
    assert "lrmil check --config distillation_weights.py" in text
    status, _, text = run(capsys, "init", "sweeps/distillation_weights")
    assert status == 1
    assert "distillation_weights.py exists already and is left as it is" in text


def test_keys_are_listed_with_what_they_mean(capsys):
    text = run(capsys, "keys", "eval_every")[1]
    assert "mil.eval_every = 1\n    epochs between validations" in text
    assert "distill.eval_every = 500\n    steps between validations" in text
    assert max(len(line) for line in run(capsys, "keys")[1].splitlines()) <= 80


PAGE = (Path(__file__).parents[1] / "docs/command.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["chek", "keys student.guide", "encoders uni"])
def test_commands_of_the_docs_print_what_stands_there(name, capsys):
    shown = re.search(rf"\$ lrmil {re.escape(name)}\n(.*?)```", PAGE, re.DOTALL)[1]
    _, out, err = run(capsys, *name.split())
    assert [line.rstrip() for line in (out + err).splitlines()] == shown.splitlines()


def test_the_yaml_of_the_docs_is_a_config(tmp_path):
    (tmp_path / "mine.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    config = yaml_config.get_config(str(tmp_path / "mine.yaml"))
    assert (config.folds, config.student.learning_rate) == (3, 1e-4)
    assert config.encoder.dtype == "bfloat16"  # of tcga_nsclc
    checks.validate(config)


def test_the_docs_name_every_command():
    listed = re.search(r"lists the commands: (.*?)\.", PAGE, re.DOTALL)[1]
    assert re.split(r",\s+", listed) == list(command.COMMANDS)


def test_the_backend_of_a_notebook_is_not_asked_for():
    code = "import lrmil_jax.command as c; c.main(['--version']); import matplotlib as m; "
    code += "print(m.get_backend())"
    environment = {**os.environ, "MPLBACKEND": "module://of_another_environment"}
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(command.__file__).parents[1],
    )
    assert ended.stdout.splitlines()[-1:] == ["agg"], ended.stderr
