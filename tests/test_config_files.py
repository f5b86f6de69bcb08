"""What `--config` names, and that an installation has every file of configs/."""

import tomllib
from pathlib import Path

import pytest

from lrmil_jax import config as configuration
from lrmil_jax import config_files, config_keys, main
from lrmil_jax.errors import ConfigError

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.py"))


def test_every_file_has_its_name():
    paths = [config_files.locate(name) for name in config_files.names()]
    assert sorted(path.resolve() for path in paths) == [path.resolve() for path in CONFIGS]


def test_the_build_takes_every_folder_with_code_along():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [*(ROOT / "lrmil_jax").rglob("*.py"), *CONFIGS]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in files}
    wanted = {
        f"lrmil_jax.{name}" if name.startswith("configs") else name
        for name in folders
        if "__pycache__" not in name
    }
    assert tool["package-dir"] == {"lrmil_jax.configs": "configs"}
    assert set(tool["packages"]) == wanted, "pyproject.toml must name every package"
    for pattern in tool["package-data"]["lrmil_jax"]:
        assert list((ROOT / "lrmil_jax").glob(pattern))


def test_an_installation_has_its_configs_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr(config_files, "_PACKAGE", tmp_path)
    assert config_files.folder() == tmp_path / "configs"
    assert config_files.names() == ()


def test_names_and_files_are_resolved_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nsclc = config_files.folder() / "tcga_nsclc.py"
    assert config_files.resolve("tcga_nsclc") == str(nsclc)
    assert config_files.resolve("tcga_nsclc:tiny") == f"{nsclc}:tiny"
    sweep = config_files.folder() / "sweeps/distillation_weights.py"
    assert config_files.resolve("sweeps/distillation_weights:tiny") == f"{sweep}:tiny"
    (tmp_path / "mine.py").touch()
    assert config_files.resolve("mine.py:tiny") == "mine.py:tiny"
    (tmp_path / "mine.yaml").touch()
    assert config_files.resolve("mine.yaml:tiny").endswith("yaml_config.py:mine.yaml:tiny")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("tcga_nslc", "did you mean tcga_nsclc?"),
        ("distillation_weights", "did you mean sweeps/distillation_weights?"),
        ("", "no config is called ''; `lrmil init`"),
        ("configs/tcga_nsclc.py", "the one that comes along is --config tcga_nsclc"),
        ("mine.py:tiny", "--config names mine.py, which does not exist"),
        ("mine.yaml", "--config names mine.yaml, which does not exist"),
    ],
)
def test_what_is_not_there_is_told(value, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        config_files.resolve(value)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("form", [["--config", "quickstart"], ["--config=quickstart"]])
def test_only_what_follows_the_flag_is_changed(form):
    changed = config_files.resolved(["prog", *form, "--config.seed=3", "--stages=quickstart"])
    assert "".join(changed[1:-2]).endswith("quickstart.py")
    assert changed[-2:] == ["--config.seed=3", "--stages=quickstart"]


@pytest.mark.parametrize("name", ["quickstart", "sweeps/distillation_weights"])
def test_a_copy_is_the_same_config_and_names_itself(name, tmp_path):
    target = tmp_path / "new" / "mine.py"
    config_files.copy(name, target)
    assert f"lrmil run --config {target}:tiny" in target.read_text()
    assert f"configs/{name}" not in target.read_text()
    assert config_files.load(str(target)).to_dict() == config_files.load(name).to_dict()
    before = target.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        config_files.copy("zero_shot", target)
    assert target.read_bytes() == before
    with pytest.raises(ConfigError, match=r"ends in \.py"):
        config_files.copy(name, tmp_path / "mine")


def test_every_key_is_listed_once_with_its_default():
    assert {key: value for key, (value, _) in config_keys.matching().items()} == (
        configuration.flatten(configuration.default())
    )
    assert config_keys.matching("student.seed")["student.seed"][1].endswith("unset: the run's")


def test_a_mistyped_name_ends_in_one_sentence(monkeypatch):
    monkeypatch.setattr(main.sys, "argv", [])
    with pytest.raises(SystemExit, match="did you mean tcga_nsclc") as caught:
        main.parse_flags(["lrmil", "--config", "tcga_nslc"])
    assert "\n" not in str(caught.value)
