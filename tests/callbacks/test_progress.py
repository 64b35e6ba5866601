import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.image_metrics import ImageMetrics
from callbacks.progress import SMOOTHING, Progress, batches_left, batches_until_validation, clock
from tests.callbacks.small import SmallData, SmallResolver, trainer_of


def fit(folder: Path, progress: Progress) -> None:
    trainer = trainer_of(folder, progress, ImageMetrics(), max_epochs=2, enable_progress_bar=True)
    trainer.fit(SmallResolver(), SmallData())


def test_a_log_file_gets_a_line_every_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Progress(log_every_n_steps=2))
    # one every two steps, and one after each validation
    lines = [line for line in capsys.readouterr().out.splitlines() if " steps: " in line]
    assert [line.split()[0] for line in lines] == [
        "2/8",
        "4/8",
        "4/8",
        "6/8",
        "8/8",
        "8/8",
    ]
    for line in lines:
        assert re.search(r"train/loss \d", line)
        assert re.search(r"step [\d.e-]+s, images/s [\d.e+]+, left \d+:\d\d, .*memory [\d.]+G$", line)
    assert "val/psnr_y" not in lines[1]
    for line in lines[2:]:
        assert re.search(r"val/psnr_y \d+.*val/bicubic/psnr_y \d+", line)


def test_lines_are_counted_in_steps_across_epochs_and_end_with_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(**options: Any) -> list[str]:
        progress = Progress(log_every_n_steps=5)
        trainer_of(tmp_path, progress, max_epochs=-1, enable_progress_bar=True, **options).fit(
            SmallResolver(), SmallData()
        )
        return [line.split()[0] for line in capsys.readouterr().out.splitlines() if " steps: " in line]

    epochs = {"limit_train_batches": 2, "limit_val_batches": 0}
    assert printed(max_steps=11, **epochs) == ["5/11", "10/11", "11/11"]
    assert printed(max_steps=10, **epochs) == ["5/10", "10/10"]
    assert printed(max_steps=6, accumulate_grad_batches=2, **epochs) == ["5/6", "6/6"]


def test_a_terminal_gets_a_bar_with_loss_and_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown: list[dict[str, Any]] = []

    class Kept(Progress):
        def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
            metrics = super().get_metrics(trainer, pl_module)
            shown.append(metrics)
            return metrics

    fit(tmp_path, Kept(refresh_rate=1))
    assert shown[0].keys() == {"train/loss", "step", "images/s", "left", "validation in", "memory"}
    printed = capsys.readouterr().out
    assert re.search(r"6/8 \|.*loss [\d.]+  [\d.e+]+ img/s  left \d+:\d\d  val in \d+:\d\d", printed)
    assert re.search(r"8/8 \|.*left 0:00  [\d.]+ best [\d.]+  [\d.]+G", printed)
    assert " steps: " not in printed


def test_the_bar_fits_into_100_columns_and_is_still_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")

    class Long(Progress):
        def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
            shown = super().get_metrics(trainer, pl_module)  # as after days of a large training
            long = {"train/loss": 0.01234, "images/s": "12.3", "left": "120:10:59", "validation in": "1:10:59"}
            return shown | long | {"val/psnr_y": 28.4123, "memory": "101.5G"}

    fit(tmp_path, Long(refresh_rate=1))
    bars = [text for text in re.split(r"[\r\n]", capsys.readouterr().out) if "/8 |" in text]
    assert bars and all(len(bar) <= 100 for bar in bars)
    assert all(re.search(r"\|.{10,}\| loss", bar) and "G" in bar for bar in bars if "loss" in bar)


def test_times_that_are_left(tmp_path: Path) -> None:
    seen: list[tuple[Any, Any]] = []

    class Spy(Callback):
        def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
            seen.append((batches_left(trainer), batches_until_validation(trainer)))

    options = {"max_epochs": -1, "max_steps": 7, "val_check_interval": 3, "check_val_every_n_epoch": None}
    trainer_of(tmp_path, Spy(), **options).fit(SmallResolver(), SmallData())
    assert seen == [(6, 2), (5, 1), (4, 3), (3, 2), (2, 1), (1, None), (0, None)]
    assert [clock(seconds) for seconds in (9, 750, 12005)] == ["0:09", "12:30", "3:20:05"]


def test_the_loss_is_smoothed_and_the_best_score_is_kept_when_resuming(tmp_path: Path) -> None:
    progress = Progress()
    for loss in (1.0, 3.0):
        progress._smooth({"loss": torch.tensor(loss)}, 1)
    assert progress._loss is not None
    smoothed = float(progress._loss) / (1 - SMOOTHING**2)
    assert smoothed == pytest.approx((SMOOTHING * 1 + 3) / (SMOOTHING + 1))  # nearly the mean, the newest counts more

    fit(tmp_path, progress)
    best = progress.state_dict()["best"]
    assert best[1] in (4, 8) and best[0] > 0
    resumed = Progress()
    resumed.load_state_dict(progress.state_dict())
    assert resumed.state_dict() == {"best": best}
