"""Enlarging from Python: any kind of image, and the notebook that shows it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.batch import make_batch
from datamodules.folder import Folder
from datamodules.photos import Photos
from lightning_modules.api import load
from lightning_modules.checkpoint import write_checkpoint
from lightning_modules.config import configured_model
from lightning_modules.enlarging.command import main
from lightning_modules.enlarging.enlarger import Enlarger
from tests.datamodules.trees import DISPLAY_P3, picture, save
from tests.lightning_modules.enlarging.copying import checkpoint
from tests.tiny.experiments import CONFIGS, tiny_overlays

NOTEBOOK = Path(__file__).resolve().parents[3] / "docs" / "enlarge.ipynb"


@pytest.fixture(scope="module")
def copying(tmp_path_factory: pytest.TempPathFactory) -> Enlarger:
    return load(checkpoint(tmp_path_factory.mktemp("copy") / "copy.ckpt"), device="cpu")


@pytest.fixture(scope="module")
def sampling(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checkpoint of a small SRDiff with YODA, never trained."""
    folder = tmp_path_factory.mktemp("sampling")
    experiment = CONFIGS / "srdiff.yaml"
    files = [experiment, CONFIGS / "region/yoda_sobel.yaml", *tiny_overlays(experiment)]
    (folder / "experiment.yaml").write_text(yaml.safe_dump({"compose": [str(file) for file in files]}))
    torch.manual_seed(0)
    write_checkpoint(*configured_model(folder / "experiment.yaml"), folder / "a.ckpt")
    return str(folder / "a.ckpt")


def doubled(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_pillow_image_becomes_one_with_what_belongs_to_it(mode: str, copying: Enlarger, tmp_path: Path) -> None:
    picture(0).convert(mode).save(tmp_path / "a.png", dpi=(300, 300))
    with Image.open(tmp_path / "a.png") as image:
        made = copying.enlarge(image)
    assert (made.mode, made.size) == (mode, (64, 48))
    assert made.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert np.array_equal(np.asarray(made), doubled(np.asarray(picture(0).convert(mode))))
    wide = Image.new("RGB", (8, 8), (200, 90, 60))
    wide.info["icc_profile"] = DISPLAY_P3
    made = copying.enlarge(wide)
    assert made.info["icc_profile"] == DISPLAY_P3
    assert np.abs(np.asarray(made).astype(int) - (200, 90, 60)).max() <= 2


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_an_array_becomes_one_of_its_kind(dtype: str, shape: tuple[int, ...], copying: Enlarger) -> None:
    random = np.random.default_rng(0).random(shape)
    levels = {"uint8": 255, "uint16": 65535}.get(dtype)
    array = (random * levels).astype(dtype) if levels else random.astype(dtype)
    made = copying.enlarge(array)
    assert made.dtype == array.dtype and made.shape == (10, 14, *shape[2:])
    colours = np.s_[..., :3] if len(shape) == 3 else np.s_[...]
    tolerance = 0 if levels else 1e-4
    np.testing.assert_allclose(made[colours].astype(float), doubled(array[colours]).astype(float), atol=tolerance)


def test_a_tensor_becomes_a_tensor_whether_one_or_a_batch(copying: Enlarger) -> None:
    images = torch.rand(2, 3, 5, 7)
    made = copying.enlarge(images)
    expected = images.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(copying.enlarge(images[1]), expected[1], atol=1e-4, rtol=0)
    assert copying.enlarge(images[0, :1]).shape == (1, 10, 14)


def test_files_folders_and_lists(copying: Enlarger, tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png"):
        save(tmp_path / "in" / name, 0)
    one, folder = copying.enlarge(str(tmp_path / "in" / "a.png")), copying.enlarge(tmp_path / "in")
    assert list(folder) == ["a", "sub/b"] and np.array_equal(np.asarray(folder["a"]), np.asarray(one))
    listed = copying.enlarge([tmp_path / "in" / "a.png", np.zeros((4, 4), np.uint8), (Image.new("L", (3, 3)),)])
    assert [type(each) for each in listed] == [Image.Image, np.ndarray, list]
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        copying.enlarge("none.png")


def test_the_command_and_python_draw_the_same(sampling: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    assert main([str(tmp_path / "a.png"), "-o", str(tmp_path / "x.png"), "--ckpt", sampling, "--device", "cpu"]) == 0
    model = load(sampling, device="cpu")
    with Image.open(tmp_path / "x.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(model.enlarge(tmp_path / "a.png")))
    tensor = torch.rand(1, 3, 9, 8)
    expected = (model.method.super_resolve(make_batch(tensor, ["image 0"], scale=4, kernel="matlab")) + 1) / 2
    torch.testing.assert_close(model.enlarge(tensor), expected, atol=2e-3, rtol=0)


def test_sampler_and_steps_are_arguments(sampling: str) -> None:
    model, image = load(sampling, device="cpu"), np.asarray(picture(0))
    counted: list[int] = []
    model.method.network.register_forward_hook(lambda *_: counted.append(1))  # type: ignore[union-attr]
    counts = []
    for options in ({}, {"steps": 3}, {"sampler": "ddim", "steps": 1}, {}):
        counted.clear()
        model.enlarge(image, **options)
        counts.append(len(counted))
    assert counts == [2, 3, 1, 2]
    assert load(sampling, device="cpu", steps=3).sampler.steps == 3  # type: ignore[union-attr]
    for options, said in (
        ({"sampler": "euler"}, "there is no 'euler'; there are ancestral, ddim"),
        ({"sampler": "relay_heun"}, "cannot be used with this method"),
        ({"steps": 0}, "steps: 0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            model.enlarge(image, **options)


def test_attention_is_a_map_of_the_result(sampling: str, copying: Enlarger) -> None:
    image = np.zeros((24, 32, 3), np.uint8)
    image[:, 16:] = 255
    shown = load(sampling, device="cpu").attention(image)
    assert shown.shape == (96, 128) and 0 <= shown.min() and shown.max() <= 1
    assert shown[:, 60:68].mean() > shown[:, :20].mean() + 0.2, "the edge is what matters"
    with pytest.raises(ValueError, match="Copying has no attention map"):
        copying.attention(image)


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"expected \[H,W\], \[H,W,3\] or \[H,W,4\], got \[4, 4, 2\]"),
        (np.zeros((4, 4, 3), np.int64), ValueError, "expected uint8, uint16 or floats, got int64"),
        (np.full((4, 4, 3), 200.0), ValueError, r"expected floats in \[0, 1\]"),
        (torch.zeros(4, 4, 3), ValueError, r"expected floats \[3,H,W\]"),
        (3, TypeError, "expected a Pillow image, an array, a tensor, a path, or a list of these, got a int"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, error: type[Exception], said: str, copying: Enlarger) -> None:
    with pytest.raises(error, match=said):
        copying.enlarge(image)


def test_the_batches_of_data_modules_are_what_methods_take(sampling: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    method = load(sampling, device="cpu").method
    photos = Photos(scale=4, crop=32, val_crop=32, batch_size=2, num_workers=0)
    for data, split in ((photos, "train"), (photos, "val"), (Folder(predict=str(tmp_path), scale=4), "predict")):
        batch = next(data.batches(split))  # type: ignore[arg-type]
        assert method.super_resolve(batch).shape == batch["up"].shape


def test_the_notebook_runs(sampling: str) -> None:
    """Each cell in turn; after the one that is tagged for it, the weights are replaced by a small model's."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names["weights"] = sampling
    assert not any(cell["outputs"] for cell in cells)
    assert names["large"].size == (96 * 4, 72 * 4) and names["array"].shape == (288, 384, 3)
    assert names["attention"].shape == (288, 384) and names["sr"].shape == names["batch"]["hr"].shape
