"""Maps of whole images follow the crops of their images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.folder import Folder
from datamodules.stream.sources import DataError


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An image whose LR equals its map: both grow to the right and downwards."""
    ramp = np.add.outer(np.arange(24) * 4, np.arange(32) * 4).astype(np.uint8)
    for folder, image in (("hr", np.kron(ramp, np.ones((4, 4), np.uint8))), ("maps", ramp)):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "a.png")
    return tmp_path / "hr", tmp_path / "maps"


def test_maps_are_cut_and_mirrored_with_the_images(folders: tuple[Path, Path]) -> None:
    hr, maps = map(str, folders)
    data = Folder(train=hr, scale=4, crop=32, batch_size=8, num_workers=0, rotate=True, attention=maps)
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    attention = torch.nn.functional.avg_pool2d(batch["attention"], 4)[..., 1:-1, 1:-1]
    shown = torch.nn.functional.avg_pool2d(batch["hr"][:, :1] / 2 + 0.5, 4)[..., 1:-1, 1:-1]
    assert batch["attention"].shape == (8, 1, 32, 32)
    torch.testing.assert_close(attention, shown, rtol=0, atol=1e-3)


def test_a_missing_map_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data = Folder(val=str(folders[0]), scale=4, crop=32, num_workers=0, attention=str(tmp_path))
    with pytest.raises(DataError, match=r"hr/a: its attention map is missing"):
        list(data.val_dataloader())
