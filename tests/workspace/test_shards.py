"""Who may work beside whom, and which config is kept of shards."""

import fcntl

import pytest

from lrmil_jax import config as configuration
from lrmil_jax import pipeline
from lrmil_jax.data import labels
from lrmil_jax.errors import ConfigError, DataError, WorkdirError
from lrmil_jax.workspace import cohorts, layout, shards


def of(**keys):
    config = configuration.default()
    config.update_from_flattened_dict({key.replace("__", "."): v for key, v in keys.items()})
    return config


def test_a_config_that_was_refused_locks_no_other_out(tmp_path):
    typo = of(data__labels=str(tmp_path / "lables.csv"), seed=1)
    with (
        pytest.raises(DataError, match=r"lables\.csv, which does not exist"),
        shards.joined("1/2", typo, tmp_path),
    ):
        pipeline.run(typo, tmp_path, ["prepare"])
    with shards.joined("1/2", of(), tmp_path):
        shards.record(of(), tmp_path)
    with (
        pytest.raises(WorkdirError, match=r"seed=1, but a shard before it had 0"),
        shards.joined("2/2", of(seed=1), tmp_path),
    ):
        pass
    with shards.joined("2/2", of(prepare__workers=3), tmp_path):
        pass


def test_of_two_configs_at_once_the_first_that_is_right_stays(tmp_path):
    with shards.joined("1/2", of(), tmp_path), shards.joined("2/2", of(seed=1), tmp_path):
        shards.record(of(seed=1), tmp_path)
        with pytest.raises(WorkdirError, match=r"seed=0, but a shard before it had 1"):
            shards.record(of(), tmp_path)


def test_another_number_of_shards_waits(tmp_path):
    with shards.joined("2/2", of(), tmp_path):
        with (
            pytest.raises(WorkdirError, match=r"shard 2/2 of .* is at work, so 3/3 cannot be"),
            shards.joined("3/3", of(), tmp_path),
        ):
            pass
        with shards.joined("1/2", of(), tmp_path):
            pass
    with shards.joined("3/3", of(), tmp_path):
        pass


def test_without_a_shard_nothing_is_recorded(tmp_path):
    shards.record(of(), tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="give i/n"), shards.joined("0/2", of(), tmp_path):
        pass


def test_shards_read_the_cohort_beside_each_other_and_save_one_set_of_folds(tmp_path, monkeypatch):
    names = [f"s{number}" for number in range(6)]
    rows = [f"{name},p{name},{'ab'[n % 2]}" for n, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\n".join(["slide_id,patient_id,label", *rows]))
    (tmp_path / "slides").mkdir()
    for name in names:
        (tmp_path / "slides" / f"{name}.tif").touch()
    keys = {"data__labels": str(tmp_path / "labels.csv"), "data__slides": str(tmp_path / "slides")}
    config, workdir = of(folds=3, **keys), tmp_path / "run"
    whole = cohorts.read(config, tmp_path / "whole")
    read, texts = labels.read_cohort, []
    saved = workdir / "folds.csv"

    def beside(*arguments):
        """Another shard could hold the lock meanwhile, and is the first to save its folds."""
        with layout.held(workdir / ".shards.lock", fcntl.LOCK_EX | fcntl.LOCK_NB, "locked"):
            found = read(*arguments)
        texts.append(saved.read_text() if saved.is_file() else None)
        if len(texts) == 1:
            own = (tmp_path / "whole/folds.csv").read_text()
            saved.write_text(own.replace("s5,ps5", "s5,other"))
        return found

    monkeypatch.setattr(labels, "read_cohort", beside)
    cohorts.forget()
    with shards.joined("1/2", config, workdir):
        cohort = cohorts.read_together(config, workdir)
    assert len(texts) == 2  # again, with the folds that it found
    assert cohort.table.equals(whole.table)
    assert saved.read_text() == (tmp_path / "whole/folds.csv").read_text()
