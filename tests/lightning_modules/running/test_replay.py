"""A training step whose loss was no number, repeated from what the run left."""

import json
import sys
from pathlib import Path

import pytest

from callbacks.nan_guard import NonFiniteLossError
from lightning_modules.cli import main
from lightning_modules.running.experiment import run
from lightning_modules.running.replay import replay
from tests.tiny.experiments import CONFIGS, arguments


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run left whose first step was far too long."""
    folder = tmp_path_factory.mktemp("failed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(NonFiniteLossError, match=r"lightning replay runs/sr3/version_0/nan/.*\.json"):
            run(["fit", *arguments(CONFIGS / "sr3.yaml"), "--model.init_args.optimizer.init_args.lr", "1e30"])
    return next(folder.glob("runs/sr3/version_0/nan/*.json"))


def test_the_step_fails_again_with_the_same_times_and_says_where(record: Path) -> None:
    loss, first = replay(record)
    assert loss.startswith("loss: nan, was nan on cpu in 32-true; the times of the record")
    assert first.startswith("first output that is NaN or infinite: network.")


def test_other_random_numbers_are_told(record: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nan"
    folder.mkdir()
    (tmp_path / "config.yaml").write_bytes((record.parents[1] / "config.yaml").read_bytes())
    for file in record.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    changed = folder / record.name
    changed.write_text(json.dumps(json.loads(record.read_text()) | {"seed": 1}))
    assert "other times than the record's" in replay(changed)[0]


def test_what_is_no_record_is_named(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (record.with_name("absent.json"), record.parents[1] / "config.yaml"):
        monkeypatch.setattr(sys, "argv", ["lightning", "replay", str(path)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert f"error: {path}: is no record of a step" in str(stopped.value.code)
