"""The log of a resumed run says how exactly it goes on."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.resume_report import ResumeReport, code
from tests.callbacks.small import SmallData, SmallResolver, trainer_of


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setattr("callbacks.resume_report.rank_zero_info", lines.append)
    return lines


def train(folder: Path, epochs: int, batch_size: int = 2, **options: Any) -> None:
    keeper = ModelCheckpoint(folder / "checkpoints", save_last=True, enable_version_counter=False)
    trainer = trainer_of(folder, ResumeReport(), keeper, max_epochs=epochs, enable_checkpointing=True)
    trainer.fit(SmallResolver(), SmallData(batch_size), **options)


def test_the_same_settings_go_on_exactly(tmp_path: Path, said: list[str]) -> None:
    train(tmp_path, 1)
    assert not said, "a new run resumes nothing"
    train(tmp_path, 2, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert said == ["the run goes on exactly after step 4"]


def test_what_has_changed_is_named(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path, 1)
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    train(tmp_path, 2, batch_size=4, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert said == ["the run goes on statistically (batch_size 2 -> 4, seed 0 -> 7) after step 4"]


def test_the_code_is_told_apart_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for content in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "callbacks").mkdir(exist_ok=True)
        (tmp_path / "callbacks" / "x.py").write_text(content)
        monkeypatch.setattr("callbacks.resume_report.__file__", str(tmp_path / "callbacks" / "resume_report.py"))
        code.cache_clear()
        digests.append(code())
    code.cache_clear()
    assert digests[0] == digests[2] != digests[1]
