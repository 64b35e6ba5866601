"""Overlays of metrics on an experiment, composed as other overlays are."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from callbacks.image_metrics import ExtraScores
from lightning_modules.config_files import CONFIGS
from lightning_modules.metrics.score import names_of
from lightning_modules.running.experiment import run
from lightning_modules.weight_files import WeightsError
from tests.tiny.experiments import arguments

OVERLAYS = sorted(path.stem for path in (CONFIGS / "metrics").glob("*.yaml"))
NAMES = {
    "classic": {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "ms_ssim_y", "lr_psnr"}
    | {f"colour_error_{channel}" for channel in "rgb"},
    "perceptual": {"lpips", "lpips_vgg", "dists"},
    "no_reference": {"niqe", "clip_iqa", "arniqa", "liqe"},
    "seeds_dossr": {"lpips", "clipiqa", "musiq", "maniqa", "maniqa-pipal", "topiq_nr"}
    | {f"{name}_patch256" for name in ("fid", "kid", "precision", "recall")},
}


def fit(*overlays: str | Path, crop: int = 64) -> Any:
    """Two steps of a tiny experiment with overlays of metrics, and a validation."""
    flags = [flag for overlay in overlays for flag in ("--config", str(overlay))]
    sizes = ["--data.init_args.val_crop", str(crop)]
    return run(["fit", *arguments(CONFIGS / "sr3.yaml"), *flags, *sizes])


def overlay(name: str) -> Path:
    return CONFIGS / "metrics" / f"{name}.yaml"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No weights, and a folder of our own for runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)


def optional(name: str, folder: Path) -> Path:
    """The overlay with every score optional."""
    content = yaml.safe_load(overlay(name).read_text())
    for callback in content["trainer"]["callbacks+"]:
        for score in callback["init_args"]["scores"]:
            score.setdefault("init_args", {})["optional"] = True
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_lists_scores_by_their_names(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = fit(optional(name, tmp_path), crop=192)
    (extra,) = [callback for callback in trained.trainer.callbacks if isinstance(callback, ExtraScores)]
    assert {each for score in extra.scores for each in names_of(score)} == NAMES[name]
    logged = {key.removeprefix("val/") for key in trained.trainer.callback_metrics}
    lines = re.findall(r"not measured: (.+?) \(", capsys.readouterr().out)
    said = {each for line in lines for each in line.split(", ")}
    assert NAMES[name] - logged == said
    assert not said & logged
    if name == "classic":
        assert NAMES[name] <= logged


@pytest.mark.parametrize("name", ["perceptual", "no_reference", "seeds_dossr"])
def test_missing_weights_are_one_error_before_training(name: str) -> None:
    with pytest.raises(WeightsError, match=r"^(LPIPS|NIQE).* needs the weights .*`weights: FILE`"):
        fit(overlay(name), crop=192)


def test_overlays_go_together_and_a_metric_of_torchmetrics_beside_them(tmp_path: Path) -> None:
    own = {
        "trainer": {
            "callbacks+": [
                {
                    "class_path": "callbacks.image_metrics.ExtraScores",
                    "init_args": {
                        "scores": [
                            {"class_path": "torchmetrics.image.VisualInformationFidelity"},
                            {"class_path": "lightning_modules.metrics.seams.Seams", "init_args": {"tile": 16}},
                        ]
                    },
                }
            ]
        }
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    trained = fit(overlay("classic"), optional("perceptual", tmp_path), tmp_path / "own.yaml", crop=192)
    logged = {key.removeprefix("val/") for key in trained.trainer.callback_metrics}
    assert NAMES["classic"] | {"visualinformationfidelity", "seams_16", "bicubic/seams_16"} <= logged


def test_an_image_too_small_for_a_score_names_both() -> None:
    with pytest.raises(ValueError, match=r"64x64 pixels are too few for ms_ssim_y, which needs 176 on each side"):
        fit(overlay("classic"))


@pytest.mark.skipif(
    not (Path(os.environ.get("DIFFSR_TEST_DATA", "/nowhere")) / "weights").is_dir(),
    reason="DIFFSR_TEST_DATA names no folder with weights",
)
def test_results_state_the_weights_that_scores_were_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFSR_WEIGHTS", str(Path(os.environ["DIFFSR_TEST_DATA"]) / "weights"))
    fit()
    checkpoint = tmp_path / "runs" / "sr3" / "version_0" / "checkpoints" / "last.ckpt"
    sizes = ["--data.init_args.val_crop", "192", "--trainer.accelerator", "cpu", "--trainer.limit_test_batches", "1"]
    with_both = ["--config", str(overlay("no_reference")), "--config", str(optional("perceptual", tmp_path))]
    run(["test", "--ckpt_path", str(checkpoint), *with_both, *sizes])
    (path,) = tmp_path.rglob("results.json")
    results = json.loads(path.read_text())
    assert results["definitions"]["niqe"]["weights"] == {
        "niqe_pris_params.npz": "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296"
    }
    assert list(results["definitions"]["lpips"]["weights"]) == ["alexnet_features.safetensors", "alex.pth"]
    assert results["means"]["niqe"]["model"] > 0 and results["means"]["lpips"]["bicubic"] > 0
    assert {"dists", "lpips_vgg"} <= set(results["not_measured"])
