import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.prediction_writer import PredictionWriter, write_png
from tests.callbacks.small import SCALE, SIZE, SmallData, SmallResolver, batch_of, trainer_of


def predict(folder: Path, writer: PredictionWriter) -> object:
    torch.manual_seed(0)
    return trainer_of(folder, writer).predict(SmallResolver(), SmallData())


def test_each_image_becomes_a_png_of_scale_times_its_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    returned = predict(tmp_path, PredictionWriter())
    folder = tmp_path / "predictions"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert files == [f"photos/sub/0{index}.png" for index in range(3)]
    torch.manual_seed(0)
    batch = batch_of("photos/sub/02")
    sr = SmallResolver().predict_step(batch, 0)["sr"][0]
    with Image.open(folder / files[2]) as image:
        assert (image.mode, image.size) == ("RGB", (SIZE, SIZE))
        assert batch["lr"].shape[-1] * SCALE == SIZE
        expected = ((sr.detach() + 1) * 127.5).round().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert not returned  # writes, never collects tensors
    assert f"3 images written to {folder}" in capsys.readouterr().out


def test_a_file_in_the_way_is_kept_and_named(tmp_path: Path) -> None:
    victim = tmp_path / "photos/sub/01.png"
    victim.parent.mkdir(parents=True)
    victim.write_bytes(b"the user's own photograph")
    with pytest.raises(FileExistsError, match=r"photos/sub/01\.png: exists, and nothing is overwritten"):
        predict(tmp_path, PredictionWriter(str(tmp_path)))
    assert victim.read_bytes() == b"the user's own photograph"


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"taken/below: cannot be made a folder for the results \(Not a directory\)"):
        predict(tmp_path, PredictionWriter(str(tmp_path / "taken/below")))


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"image\.png: cannot be written \(File too large\)"):
            write_png(tmp_path / "image.png", Image.fromarray(noise))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["../outside", "/etc/outside"])
def test_a_key_that_leads_out_of_the_folder_is_refused(tmp_path: Path, key: str) -> None:
    writer = PredictionWriter(str(tmp_path / "out"))
    batch = batch_of("a")
    batch["key"] = [key]
    with pytest.raises(ValueError, match="leads out of the folder"):
        writer.write_on_batch_end(trainer_of(tmp_path), SmallResolver(), {"sr": batch["up"]}, None, batch, 0, 0)
