import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer

from callbacks.image_metrics import ImageMetrics
from callbacks.progress import Progress
from tests.callbacks.small import SmallData, SmallResolver, trainer_of


def fit(folder: Path, progress: Progress) -> None:
    trainer = trainer_of(folder, progress, ImageMetrics(), max_epochs=2, enable_progress_bar=True)
    trainer.fit(SmallResolver(), SmallData())


def test_a_log_file_gets_a_line_every_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, Progress(log_every_n_steps=2))
    lines = [line for line in capsys.readouterr().out.splitlines() if " steps: " in line]
    assert [line.split()[0] for line in lines] == ["2", "4", "4", "6", "8", "8"]  # and one after each validation
    for line in lines:
        assert re.search(r"train/loss \d", line)
        assert re.search(r"step [\d.e-]+s, images/s [\d.e+]+", line)
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
    assert shown[0].keys() == {"train/loss", "step", "images/s"}
    printed = capsys.readouterr().out
    assert re.search(r"Epoch 1:.*4/4.*train/loss=.*step=.*images/s=", printed)
    assert " steps: " not in printed
