import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.metrics.lpips import lpips


def test_without_torchvision_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs torchvision.*extra `lpips`.*, or leave LPIPS out"):
        lpips()
    with pytest.raises(ModuleNotFoundError, match=r", or set its weight to 0"):
        lpips("vgg", otherwise="set its weight to 0")


def test_without_weights_the_error_names_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torchvision.models")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"alexnet-.*\.pth: LPIPS needs the ImageNet weights"):
        lpips()
