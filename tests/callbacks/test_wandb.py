from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image

from callbacks.image_metrics import ImageMetrics
from callbacks.sample_grid import SampleGrid
from tests.callbacks.small import SmallData, SmallResolver, trainer_of


def test_an_offline_run_keeps_scores_and_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = [
        CSVLogger(tmp_path / "csv", name="", version=""),
        WandbLogger(project="diffsr", save_dir=tmp_path, name="small"),
    ]
    trainer = trainer_of(tmp_path, ImageMetrics(), SampleGrid(), max_epochs=1, logger=loggers)
    try:
        trainer.fit(SmallResolver(), SmallData())
    finally:
        wandb.finish()

    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (written,) = run.glob("files/media/images/val/samples_*.png")
    with Image.open(written) as logged, Image.open(tmp_path / "csv/samples/step-000004.png") as kept:
        assert list(logged.getdata()) == list(kept.getdata())
    (log,) = run.glob("run-*.wandb")
    content = log.read_bytes()
    for name in (b"val/psnr_y", b"val/bicubic/psnr_y", b"val/samples"):
        assert name in content
    assert "val/psnr_y" in (tmp_path / "csv/metrics.csv").read_text()
