import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.prediction_writer import PredictionWriter
from datamodules.batch import Batch
from datamodules.folder import Folder
from datamodules.photograph import Photograph, write_photograph
from tests.callbacks.small import SCALE, SIZE, SmallData, SmallResolver, batch_of, trainer_of
from tests.datamodules.trees import DISPLAY_P3


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


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name == "sub")
    return {path.stem: path.read_bytes() for path in files}


def test_a_file_in_the_way_is_kept_and_named_and_the_others_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "photos/sub/01.png"
    victim.parent.mkdir(parents=True)
    victim.write_bytes(b"the user's own photograph")
    writer = PredictionWriter(str(tmp_path))
    predict(tmp_path, writer)
    assert list(writer.failures) == ["photos/sub/01"]
    assert (
        f"{victim}: exists, and nothing is overwritten; --skip_existing leaves it" in writer.failures["photos/sub/01"]
    )
    assert victim.read_bytes() == b"the user's own photograph"
    assert list(contents(tmp_path)) == ["00", "01", "02"]
    assert "2 images written to" in (said := capsys.readouterr().out) and "1 failed" in said


def test_existing_files_are_skipped_before_they_are_computed_or_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(tmp_path, PredictionWriter(str(tmp_path)))
    whole = contents(tmp_path)
    (tmp_path / "photos/sub/01.png").write_bytes(b"of an earlier model")
    (tmp_path / "photos/sub/02.png").unlink()
    seen: list[str] = []

    class Watching(SmallResolver):
        def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
            if batch.get("skip"):
                return {}
            seen.extend(batch["key"])
            return super().predict_step(batch, batch_idx)

    torch.manual_seed(0)
    capsys.readouterr()
    writer = PredictionWriter(str(tmp_path), skip_existing=True)
    trainer_of(tmp_path, writer).predict(Watching(), SmallData())
    assert seen == ["photos/sub/02"] and not writer.failures
    assert contents(tmp_path) == {**whole, "01": b"of an earlier model"}
    assert "1 image written to" in (said := capsys.readouterr().out) and "2 skipped, whose files exist" in said

    predict(tmp_path, PredictionWriter(str(tmp_path), overwrite=True))
    assert contents(tmp_path) == whole
    with pytest.raises(ValueError, match="skip_existing and overwrite: existing files are either"):
        PredictionWriter(skip_existing=True, overwrite=True)


def test_an_image_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    class Failing(SmallResolver):
        def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
            if batch_idx == 0:
                return {"failed": {batch["key"][0]: "00: too small"}}
            made = super().predict_step(batch, batch_idx)
            return {"sr": made["sr"] * (torch.nan if batch_idx == 1 else 1)}

    writer = PredictionWriter(str(tmp_path))
    trainer_of(tmp_path, writer).predict(Failing(), SmallData())
    assert writer.failures["photos/sub/00"] == "00: too small"
    assert "photos/sub/01: the image holds NaN or infinity" in writer.failures["photos/sub/01"]
    assert list(contents(tmp_path)) == ["02"]


def test_two_results_of_one_name_are_not_laid_over_each_other(tmp_path: Path) -> None:
    writer, batch = PredictionWriter(str(tmp_path), overwrite=True), batch_of("cat")
    prediction = {"sr": batch["hr"], "std": batch["hr"].abs()}
    writer.write_on_batch_end(trainer_of(tmp_path), SmallResolver(), prediction, None, batch, 0, 0)
    drawn = (tmp_path / "cat_std.png").read_bytes()
    other = batch_of("cat_std")
    writer.write_on_batch_end(trainer_of(tmp_path), SmallResolver(), {"sr": other["hr"]}, None, other, 1, 0)
    assert "is the name of two results of this run" in writer.failures["cat_std"]
    assert (tmp_path / "cat_std.png").read_bytes() == drawn


def test_the_colours_of_the_source_are_written_back_on_request(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 90, 60))
    image.save(tmp_path / "p3.png", icc_profile=DISPLAY_P3)
    image.save(tmp_path / "plain.png")
    for colours, expected in (("srgb", (None, (216, 81, 49))), ("source", (DISPLAY_P3, (200, 90, 60)))):
        data = Folder(predict=[str(tmp_path / "p3.png"), str(tmp_path / "plain.png")], scale=2, crop=2)
        writer = PredictionWriter(str(tmp_path / colours), colours=colours)  # type: ignore[arg-type]
        trainer_of(tmp_path, writer).predict(Copying(), data)
        with Image.open(tmp_path / colours / "p3.png") as written:
            assert written.info.get("icc_profile") == expected[0]
            assert np.abs(np.asarray(written)[8, 8].astype(int) - expected[1]).max() <= 3
        with Image.open(tmp_path / colours / "plain.png") as written:
            assert "icc_profile" not in written.info and written.getpixel((8, 8)) == (200, 90, 60)


class Copying(SmallResolver):
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"sr": batch["up"]}


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError, match=r"taken/below: cannot be made a folder for the results \(Not a directory\)"):
        predict(tmp_path, PredictionWriter(str(tmp_path / "taken/below")))


def test_a_full_disk_is_one_clear_error_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files of compiled modules would be cut off, too
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=r"image\.png: cannot be written \(File too large\)"):
            write_photograph(Photograph("noise", noise), tmp_path / "image.png")
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


def test_the_name_of_an_image_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^folder: .*big\.PNG is the name of an image file; give a folder"):
        PredictionWriter(str(tmp_path / "big.PNG"))
    (tmp_path / "photos.png").mkdir()
    PredictionWriter(str(tmp_path / "photos.png"))
