"""YODA's overlay for tiles, through the command: training, what validation and test log, prediction."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_modules.diffusion.yoda import YODA
from lightning_modules.running.experiment import run
from tests.tiny.experiments import CONFIGS, arguments

SPARSE = ["--config", str(CONFIGS / "region" / "yoda_sobel.yaml"), "--config", str(CONFIGS / "region/yoda_sparse.yaml")]
SMALL = ["--model.init_args.region.init_args.tile", "16", "--model.init_args.region.init_args.halo", "8"]
EARLY = ["--model.init_args.region.init_args.whole_end", "false"]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two steps of a tiny SRDiff under the overlay, with two sampling steps, after which many pixels still wait."""
    monkeypatch.chdir(tmp_path)
    config = CONFIGS / "srdiff.yaml"
    first, *tiny = arguments(config)
    trained = run(["fit", first, *tiny[:1], *SPARSE, *tiny[1:], *SMALL, *EARLY])
    region = trained.model.region
    assert isinstance(region, YODA) and region.sparse is not None
    assert (region.sparse.tile, region.sparse.halo, region.input_mode) == (16, 8, "composite")
    assert 0.01 < float(trained.trainer.callback_metrics["val/never_diffused"]) < 1
    return next(tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt"))


def test_prediction_says_how_much_never_diffused(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = torch.randint(0, 256, (24, 20, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(picture.numpy()).save(tmp_path / "small.png")
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match=r"small.*% of the pixels never diffused"):
        run(["predict", "--ckpt_path", str(checkpoint), "--input", "small.png", "--output", "large"])
    assert (tmp_path / "large" / "small.png").is_file()
    assert any(record.message.startswith("never diffused: ") for record in caplog.records)


def test_the_share_that_never_diffused_is_logged_and_warned_of(checkpoint: Path) -> None:
    photos = ["--config", str(CONFIGS / "data" / "photos.yaml"), "--data.init_args.val_crop", "64"]
    with pytest.warns(UserWarning, match="of the pixels never diffused"):
        tested = run(["test", "--ckpt_path", str(checkpoint), *photos])
    assert 0.01 < float(tested.trainer.callback_metrics["test/never_diffused"]) < 1

    whole = ["--model.init_args.region.init_args.whole_end", "true"]
    tested = run(["test", "--ckpt_path", str(checkpoint), *photos, *whole])
    assert float(tested.trainer.callback_metrics["test/never_diffused"]) == 0
