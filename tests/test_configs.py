"""Every experiment in configs/ trains and validates for two batches, and its checkpoint rebuilds the method.

A new experiment is found by itself; tests/tiny/experiments.py says how it is shrunk.
"""

from pathlib import Path

import pytest
import torch

from datamodules.batch import Batch
from lightning_modules.config import load_method
from lightning_modules.running.experiment import run
from tests.tiny.experiments import EXPERIMENTS, arguments


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_trains_validates_and_reloads(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained = run(["fit", *arguments(config)]).model.eval()
    assert trained.trainer.global_step == 2
    version = tmp_path / "runs" / config.stem / "version_0"
    assert list(version.glob("samples/*.png")), "no sample grid was written"
    loaded = load_method(version / "checkpoints" / "last.ckpt")
    stored = trained.state_dict()
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, stored[key], rtol=0, atol=0, msg=key)
    scale = trained.trainer.datamodule.scale
    lr = torch.linspace(-1, 1, 3 * 20 * 17).view(1, 3, 20, 17)
    batch = Batch(lr=lr, up=torch.nn.functional.interpolate(lr, scale_factor=scale), key=["a"])
    torch.testing.assert_close(loaded.super_resolve(batch), trained.cpu().super_resolve(batch), rtol=0, atol=1e-5)
