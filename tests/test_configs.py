"""Every experiment in configs/ trains and validates for two batches, and its checkpoint rebuilds the method.

An overlay tests/tiny/<path> shrinks what the file configs/<path> asks for; a new experiment is found by itself.
"""

from pathlib import Path

import pytest
import torch

from datamodules.batch import Batch
from lightning_modules.checkpoint import load_method
from lightning_modules.cli import CONFIGS, layers, run

TINY = Path(__file__).parent / "tiny"
DEFAULTS = {"base.yaml", "predict.yaml", "test.yaml", "validate.yaml", "cascade.yaml", "generate.yaml"}
EXPERIMENTS = sorted(path for path in CONFIGS.glob("*.yaml") if path.name not in DEFAULTS)


def tiny_overlays(config: Path) -> list[Path]:
    mirrored = (TINY / layer.resolve().relative_to(CONFIGS) for layer in layers(config))
    overlays = [overlay for overlay in mirrored if overlay.is_file() and overlay.name != "base.yaml"]
    return [*overlays, TINY / "base.yaml"]


def arguments(config: Path) -> list[str]:
    return [flag for path in [config, *tiny_overlays(config)] for flag in ("--config", str(path))]


@pytest.mark.parametrize("config", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_trains_validates_and_reloads(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
