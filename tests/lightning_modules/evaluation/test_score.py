"""`lightning score`: folders of anyone's pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.data import astronaut, cat, coffee

from datamodules.batch import to_pixels
from datamodules.folder import Folder
from lightning_modules.config_errors import ConfigError
from lightning_modules.evaluation.conventions import Collected, Convention
from lightning_modules.evaluation.folders import FoldersError, bare_name
from lightning_modules.evaluation.results import Results, ResultsError, read_results
from lightning_modules.evaluation.score import main
from lightning_modules.metrics.pixels import crop_border, luma
from lightning_modules.metrics.ssim import ssim

DATA = Path(os.environ.get("DIFFSR_TEST_DATA", "/nowhere"))
PHOTOS = {"astronaut": astronaut, "cat": cat, "coffee": coffee}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`sr`, `hr` and `lr` below a folder, with the endings that programs add."""
    for name, photo in PHOTOS.items():
        hr = photo()[:96, :64]
        lr = np.asarray(Image.fromarray(hr).resize((16, 24), Image.Resampling.BICUBIC))
        save(tmp_path / "hr" / f"{name}_HR.png", hr)
        save(tmp_path / "lr" / f"{name}_LR4.png", lr)
        save(tmp_path / "sr" / f"{name}x4_out.png", np.asarray(Image.fromarray(lr).resize((64, 96))))
    return tmp_path


@pytest.fixture(autouse=True)
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))


def score(folders: Path, *more: str) -> Results:
    main([str(folders / "sr"), str(folders / "hr"), "--out", str(folders / "out"), *more])
    return read_results(folders / "out")


def listing(path: Path, class_path: str) -> Path:
    """An overlay that lists a score."""
    scores = {"scores": [{"class_path": class_path}]}
    callback = {"class_path": "callbacks.image_metrics.ExtraScores", "init_args": scores}
    path.write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    return path


def pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].double() / 255


def test_files_are_matched_without_what_programs_add_to_names(folders: Path) -> None:
    results = score(folders)
    assert results.images == ["hr/astronaut_HR", "hr/cat_HR", "hr/coffee_HR"]
    for key, value in results.values("ssim_y").items():
        name = key.removeprefix("hr/").removesuffix("_HR")
        sr, hr = pixels(folders / "sr" / f"{name}x4_out.png"), pixels(folders / "hr" / f"{name}_HR.png")
        assert value == pytest.approx(float(ssim(luma(crop_border(sr, 4)), luma(crop_border(hr, 4)))))
        assert results.picture("sr", key) == folders / "sr" / f"{name}x4_out.png"
    assert results.content["not_measured"].keys() == {"lpips"}


@pytest.mark.parametrize(
    ("stem", "bare"),
    [
        ("babyx4", "baby"),
        ("baby_x4", "baby"),
        ("Baby_SRx2", "baby"),
        ("0801_RealESRGAN_x4plus", "0801"),
        ("Canon_001_LR4", "canon_001"),
        ("x4", "x4"),
        ("img_001_SRF_4_HR", "img_001_srf_4"),
        ("outdoor", "outdoor"),
    ],
)
def test_bare_names(stem: str, bare: str) -> None:
    assert bare_name(stem) == bare


def test_bicubic_stands_beside_where_low_resolution_images_are_given(folders: Path) -> None:
    overlay = listing(folders / "own.yaml", "lightning_modules.metrics.lr_consistency.LRConsistency")
    results = score(folders, "--lr", str(folders / "lr"), "--config", str(overlay), "--set", "mine")
    assert results.baseline == "bicubic"
    assert 10 < results.mean("psnr_y", "bicubic") < 50
    assert "lr_psnr" in results.definitions
    assert results.images[0] == "mine/astronaut_HR"


def test_a_protocol_sets_border_and_scores(folders: Path) -> None:
    results = score(folders, "--protocol", "face-16-128@1")
    assert results.protocol == "face-16-128@1"
    assert results.content["measured"]["border"] == 0
    assert "psnr_rgb" in results.definitions
    with pytest.raises(ConfigError, match="--border 4: face-16-128@1 leaves out 0 pixels"):
        score(folders, "--protocol", "face-16-128@1", "--border", "4")
    with pytest.raises(ConfigError, match="classic@9: no such protocol"):
        score(folders, "--protocol", "classic@9")


def test_all_files_without_a_partner_are_listed(folders: Path) -> None:
    (folders / "sr" / "catx4_out.png").rename(folders / "sr" / "dog.png")
    with pytest.raises(FoldersError, match=r"2 image\(s\) have no partner(?s:.*)cat: no SR(?s:.*)dog: no HR"):
        score(folders)


def test_all_files_of_other_sizes_are_listed_and_can_be_cropped(folders: Path) -> None:
    for name in ("cat", "coffee"):
        save(folders / "hr" / f"{name}_HR.png", PHOTOS[name]()[:97, :66])
    with pytest.raises(FoldersError, match=r"(?s)2 image\(s\).*--crop-hr.*catx4_out.png has 64x96 .* 66x97.*coffee"):
        score(folders)
    cropped = score(folders, "--crop-hr").values("psnr_y")
    for name in ("cat", "coffee"):
        save(folders / "hr" / f"{name}_HR.png", PHOTOS[name]()[:96, :64])
    assert score(folders).values("psnr_y") == cropped
    save(folders / "hr" / "cat_HR.png", cat()[:95, :64])
    with pytest.raises(FoldersError, match=r"catx4_out.png has 64x96 pixels, .*cat_HR.png 64x95"):
        score(folders, "--crop-hr")


def test_two_files_of_one_name_and_damaged_files_are_named(folders: Path) -> None:
    save(folders / "sr" / "cat_x4.png", cat()[:96, :64])
    with pytest.raises(FoldersError, match=r"files of one name(?s:.*)cat_x4.png and .*catx4_out.png"):
        score(folders)
    (folders / "sr" / "cat_x4.png").unlink()
    content = (folders / "sr" / "catx4_out.png").read_bytes()
    (folders / "sr" / "catx4_out.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(FoldersError, match=r"catx4_out.png"):
        score(folders)


def test_nan_names_image_and_score_once_everything_is_written(folders: Path) -> None:
    save(folders / "sr" / "catx4_out.png", np.full((96, 64, 3), 7, np.uint8))
    overlay = listing(folders / "own.yaml", "tests.callbacks.test_image_metrics.Spread")
    with pytest.raises(ResultsError, match=r"hr/cat_HR: spread is NaN\. .*other scores are in .*results\.json"):
        score(folders, "--config", str(overlay))
    results = read_results(folders / "out")
    with pytest.raises(ResultsError, match="hr/cat_HR: spread is NaN"):
        results.values("spread")
    assert len(results.values("psnr_y")) == 3


def test_pictures_without_targets_have_the_scores_that_need_none(folders: Path) -> None:
    overlay = listing(folders / "own.yaml", "tests.callbacks.test_image_metrics.Spread")
    main([str(folders / "sr"), "--out", str(folders / "out"), "--config", str(overlay)])
    results = read_results(folders / "out")
    assert set(results.definitions) == {"spread"} and len(results.images) == 3
    with pytest.raises(ConfigError, match="--paper compares with targets"):
        main([str(folders / "sr"), "--out", str(folders / "out"), "--paper", "28"])


def test_the_two_kinds_of_y_lie_as_far_apart_as_their_ranges() -> None:
    generator = torch.Generator().manual_seed(0)
    collected = Collected(2)
    for _ in range(3):
        hr = torch.randint(0, 256, (1, 3, 24, 24), generator=generator, dtype=torch.uint8)
        noise = torch.randint(0, 9, hr.shape, generator=generator, dtype=torch.uint8)
        collected.add(hr // 2 + noise, hr // 2)
    for pooled in (False, True):
        studio, full = (Convention(channels, 2, False, pooled) for channels in ("Y-601", "Y-YIQ"))
        assert collected.psnr(studio) - collected.psnr(full) == pytest.approx(20 * np.log10(255 / 219), abs=1e-3)
    assert collected.psnr(Convention("RGB", 0, False, True)) < collected.psnr(Convention("RGB", 0, False, False)) + 1e-9


def test_a_papers_number_finds_its_convention(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    collected = Collected(4)
    for name in PHOTOS:
        sr, hr = (folders / "sr" / f"{name}x4_out.png"), (folders / "hr" / f"{name}_HR.png")
        collected.add(*((255 * pixels(path)).round().to(torch.uint8) for path in (sr, hr)))
    wanted = Convention("Y-YIQ", 4, True, True)
    number = collected.psnr(wanted)
    score(folders, "--paper", f"{number:.6f}", f"{collected.ssim(Convention('RGB', 0, False, False)):.6f}")
    out = capsys.readouterr().out
    assert f"nearest is {wanted} with PSNR {number:.4f}, 0.0000 away" in out
    assert "nearest is RGB, border 0, mean of images with SSIM" in out
    assert "Y-601 lies 1.322 dB above Y-YIQ" in out


@pytest.mark.skipif(not (DATA / "weights").is_dir(), reason="DIFFSR_TEST_DATA names no folder with weights")
def test_bicubic_on_set5_scores_what_an_independent_scorer_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """28.431 dB, 0.8113 and 0.3407."""
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(DATA / "weights"))
    data = Folder(test=str(DATA / "set5"), scale=4, num_workers=0)
    for raw in data.test_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        up = to_pixels(batch["up"], batch["key"])[0].permute(1, 2, 0).numpy()
        save(tmp_path / "up" / f"{Path(batch['key'][0]).name}_x4.png", up)
    main([str(tmp_path / "up"), str(DATA / "set5"), "--out", str(tmp_path)])
    results = read_results(tmp_path)
    assert results.mean("psnr_y") == pytest.approx(28.431, abs=5e-4)
    assert results.mean("ssim_y") == pytest.approx(0.8113, abs=5e-5)
    assert results.mean("lpips") == pytest.approx(0.3407, abs=5e-5)
