from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from callbacks.prediction_writer import PredictionWriter, spread_picture


def writer(folder: Path) -> tuple[PredictionWriter, Any]:
    made, trainer = PredictionWriter(str(folder)), SimpleNamespace(predict_loop=SimpleNamespace(), log_dir=None)
    made.on_predict_start(trainer, SimpleNamespace())
    return made, trainer


def test_spread_is_in_grey_levels() -> None:
    std = torch.tensor([0.0, 16.0, 32.0, 100.0]).view(1, 1, 1, 4).expand(1, 3, 1, 4) / 127.5
    torch.testing.assert_close(spread_picture(std)[0, 0, 0], torch.tensor([-1.0, 0.0, 1.0, 1.0]))


def test_mean_and_spread_are_written(tmp_path: Path) -> None:
    made, trainer = writer(tmp_path)
    prediction = {"sr": torch.zeros(1, 3, 4, 5), "std": torch.full((1, 3, 4, 5), 8 / 127.5)}
    made.write_on_batch_end(trainer, SimpleNamespace(), prediction, None, {"key": ["sub/a"]}, 0, 0)
    assert np.asarray(Image.open(tmp_path / "sub/a.png")).shape == (4, 5, 3)
    assert np.asarray(Image.open(tmp_path / "sub/a_std.png")).mean() == 64


def test_a_spread_in_the_way_is_found_before_anything_is_computed(tmp_path: Path) -> None:
    made, trainer = writer(tmp_path)
    (tmp_path / "a_std.png").touch()
    made.on_predict_batch_start(trainer, SimpleNamespace(draws=1), {"key": ["a"]}, 0)
    assert not made.failures
    batch: dict[str, Any] = {"key": ["a"]}
    made.on_predict_batch_start(trainer, SimpleNamespace(draws=2), batch, 0)
    assert batch["skip"] and "a_std.png: exists, and nothing is overwritten" in made.failures["a"]
