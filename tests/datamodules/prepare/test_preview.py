"""The contact sheet command."""

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from datamodules.prepare.preview import main, recipe_lines
from lightning_modules.cli import degradation as build_degradation


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    return folder


def test_a_sheet_shows_each_draw_and_recipes_are_kept(photos: Path, tmp_path: Path) -> None:
    out, recipes = tmp_path / "new/sheet.png", tmp_path / "recipes.json"
    command = [str(photos), "--degradation", "resshift", "--out", str(out), "--recipes", str(recipes)]
    main([*command, "--draws", "2", "--crop", "130", "--columns", "3", "--name", "mine"], build_degradation)
    kept = json.loads(recipes.read_text())
    assert list(kept) == [
        "mine/chelsea  epoch 0",
        "mine/chelsea  epoch 1",
        "mine/coffee  epoch 0",
        "mine/coffee  epoch 1",
    ]
    sheet = np.asarray(Image.open(out).convert("RGB"), dtype=float)
    assert sheet.shape[1] == 3 * (2 * 128 + 8) + 8  # sides are cut to the scale
    cell = sheet[8 : 8 + 128, 8 : 8 + 256]
    blocks = cell[:, 128:].reshape(32, 4, 32, 4, 3)
    assert np.ptp(blocks, axis=(1, 3)).max() == 0  # the right half repeats pixels, the left one does not
    assert np.ptp(cell[:, :128].reshape(32, 4, 32, 4, 3), axis=(1, 3)).max() > 0
    assert (sheet[8 + 128 + 8 :, 8 : 8 + 256] < 128).any()  # text beneath


def test_any_config_with_data_will_do(photos: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "experiment.yaml"
    (tmp_path / "data.yaml").write_text("data: {class_path: datamodules.folder.Folder, init_args: {scale: 2}}")
    experiment.write_text("compose: [data.yaml]")
    out = tmp_path / "sheet.png"
    main(
        [str(photos / "coffee.png"), "--config", str(experiment), "--out", str(out), "--crop", "64"], build_degradation
    )
    assert Image.open(out).width == 2 * 64 + 16


def test_later_configs_win_and_the_scale_over_all(photos: Path, tmp_path: Path) -> None:
    before = "class_path: datamodules.degradations.realesrgan.RealESRGAN, init_args: {noise_range: [1, 2]}"
    after = "class_path: datamodules.degradations.area.Area, init_args: {scale: '${data.init_args.scale}'}"
    for name, text in (("before", before), ("after", after)):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{init_args: {{degradation: {{{text}}}}}}}")
    configs = [flag for name in ("before", "after") for flag in ("--config", str(tmp_path / f"{name}.yaml"))]
    out = tmp_path / "sheet.png"
    main([str(photos / "coffee.png"), *configs, "--scale", "8", "--out", str(out), "--crop", "64"], build_degradation)
    cell = np.asarray(Image.open(out).convert("RGB"), dtype=float)[8 : 8 + 64, 8 : 8 + 128]
    means = cell[:, :64].reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    assert np.abs(cell[:, 64:].reshape(8, 8, 8, 8, 3) - means[:, None, :, None]).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["photos", "--degradation", "nothing"], "realesrgan, realesrgan_shuffled, resshift"),
        (["absent", "--degradation", "resshift"], "absent: no such file"),
        (
            ["photos", "--degradation", "realesrgan", "--crop", "48"],
            "chelsea: 48x48 is too small for blur_kernel_size2",
        ),
        (["photos", "--config", "wrong.yaml"], "noise_rang"),
    ],
)
def test_errors_are_one_message(
    photos: Path, tmp_path: Path, arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    degradation = "{class_path: datamodules.degradations.realesrgan.RealESRGAN, init_args: {noise_rang: [1, 2]}}"
    Path("wrong.yaml").write_text(f"data: {{init_args: {{degradation: {degradation}}}}}")
    with pytest.raises(SystemExit, match=named):
        main([*arguments, "--out", "sheet.png"], build_degradation)
    assert not Path("sheet.png").exists()


def test_recipes_as_text() -> None:
    recipe = {"operations": [{"name": "jpeg", "quality": 61.7234}, {"name": "blur", "kernel": "iso", "seed": 5}]}
    assert recipe_lines(recipe) == ["jpeg quality 61.7", "blur iso"]
    assert recipe_lines({}) == []
