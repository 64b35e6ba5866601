"""Attention maps as files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from callbacks.prediction_writer import PredictionWriter
from datamodules.batch import make_batch
from datamodules.folder import Folder
from lightning_modules.attention import AttentionMapper
from lightning_modules.networks.attention_maps import AttentionMap, Constant, Norm, Sobel
from tests.callbacks.small import trainer_of
from tests.datamodules.trees import save


class OnItsOwnGrid(AttentionMap):
    """Brightness on a grid of a fixed size, as that of DINO's patches."""

    def __init__(self, side: int, norm: Norm = "minmax") -> None:
        super().__init__(norm)
        self.side = side

    def saliency(self, image: Tensor) -> Tensor:
        return adaptive_avg_pool2d(image.mean(dim=1, keepdim=True), self.side)


@pytest.mark.parametrize("norm", ["minmax", "p2p98"])
@pytest.mark.parametrize("side", [5, 7, 40])
def test_a_map_of_another_size_reaches_from_0_to_1_on_the_grid_of_the_image(side: int, norm: Norm) -> None:
    images = torch.rand(2, 3, 17, 23, generator=torch.Generator().manual_seed(0))
    sr = AttentionMapper(OnItsOwnGrid(side, norm)).super_resolve(
        make_batch(images, ["a", "b"], scale=1, kernel="matlab")
    )
    for shown in (sr + 1) / 2:
        assert (float(shown.min()), float(shown.max())) == pytest.approx((0, 1), abs=1e-6)


def test_a_map_of_the_size_of_the_image_stays_as_it_is(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 17, 23)
    for attention in (Sobel(), Constant(0.25)):
        sr = AttentionMapper(attention).super_resolve(make_batch(images, ["a"], scale=1, kernel="matlab"))
        torch.testing.assert_close((sr[:, :1] + 1) / 2, attention(images * 2 - 1))


def test_the_file_of_a_map_holds_black_and_white(tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", 0, 30, 41)
    writer = PredictionWriter(str(tmp_path / "maps"))
    data = Folder(predict=str(tmp_path / "in"), scale=1)
    trainer_of(tmp_path, writer, logger=False).predict(AttentionMapper(OnItsOwnGrid(6)), data)
    with Image.open(tmp_path / "maps" / "a.png") as written:
        pixels = np.asarray(written)
    assert pixels.shape == (30, 41, 3) and (pixels.min(), pixels.max()) == (0, 255)
