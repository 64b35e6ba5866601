"""A trained method as a folder: what it holds, that it computes the same, and its use in place of a checkpoint."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from datamodules.photos import bundled
from lightning_modules.checkpoint import CheckpointError, read_checkpoint
from lightning_modules.config import load_method
from lightning_modules.evaluation.results import ResultsError
from lightning_modules.exporting.export import export, main
from lightning_modules.exporting.verify import HALF, OTHER_DEVICE, SAME, tolerance, verify
from lightning_modules.exporting.verify import main as verify_main
from lightning_modules.running.experiment import run
from lightning_modules.weight_files import WeightsError, digest
from tests.tiny.experiments import CONFIGS, arguments

EMA = {"trainer": {"callbacks+": [{"class_path": "callbacks.ema.EMA", "init_args": {"decay": 0.5, "warmup": False}}]}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by experiment: "ema" is a tiny RRDB with a moving average, "srdiff" has a frozen DINO."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "ema.yaml").write_text(yaml.safe_dump(EMA))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(["fit", *arguments(CONFIGS / "rrdb.yaml"), "--config", "ema.yaml"])
        run(["fit", *arguments(CONFIGS / "srdiff_yoda.yaml")])
        run(["test", "--ckpt_path", "runs/rrdb/last/checkpoints/last.ckpt", "--experiment", "tested"])
    found = {"ema": folder / "runs" / "rrdb", "srdiff": folder / "runs" / "srdiff_yoda"}
    checkpoints = {name: path / "version_0" / "checkpoints" / "last.ckpt" for name, path in found.items()}
    return checkpoints | {"results": folder / "runs" / "tested" / "version_0" / "results.json"}


@pytest.fixture(scope="module")
def rrdb(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, which tests must not change."""
    folder = tmp_path_factory.mktemp("exports") / "rrdb-x4"
    main([str(trained["ema"]), str(folder), "--license", "mit", "--note", "Trained for two steps.", "--results",
          str(trained["results"])])  # fmt: skip
    return folder


def copied(folder: Path, to: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file():
            target = to / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def test_it_holds_weights_config_card_and_pairs(rrdb: Path, trained: dict[str, Path]) -> None:
    pairs = [f"pairs/{name}_{kind}.png" for name in ("astronaut", "chelsea", "coffee") for kind in ("lr", "sr")]
    files = sorted(path.relative_to(rrdb).as_posix() for path in rrdb.rglob("*") if path.is_file())
    assert files == sorted(["README.md", "config.yaml", "model.safetensors", "pairs/pairs.json", *pairs])
    assert len({(rrdb / name).stat().st_mode for name in files}) == 1, "some can be read by fewer users than others"
    config = yaml.safe_load((rrdb / "config.yaml").read_text())
    assert config["model"]["class_path"] == "lightning_modules.rrdb.RRDBRegressor"
    assert config["data"]["init_args"]["scale"] == 4
    small, large = (Image.open(rrdb / f"pairs/coffee_{kind}.png").size for kind in ("lr", "sr"))
    assert (small[0] * 4, small[1] * 4) == large


def test_the_card_says_what_was_measured_and_with_what(rrdb: Path, trained: dict[str, Path]) -> None:
    card = (rrdb / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "mit" and header["tags"] == ["super-resolution", "RRDBRegressor"]
    results = json.loads(trained["results"].read_text())
    means = results["means"]["psnr_y"]
    assert f"| psnr_y | {means['model']:.4g} | {means['bicubic']:.4g} |" in card
    for said in ("x4", "moving average", "full precision", digest(trained["ema"]), "for 2 steps", "photos.Photos",
                 "- Trained for two steps.", "2 images of Photos", "regression", "MATLAB bicubic"):  # fmt: skip
        assert said in card, said


def test_results_of_another_checkpoint_are_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"results\.json: was measured with another checkpoint"):
        export(trained["srdiff"], tmp_path / "out", results=[trained["results"]])
    assert not list(tmp_path.iterdir())


def test_the_moving_average_is_exported_unless_the_raw_weights_are_asked_for(
    trained: dict[str, Path], rrdb: Path, tmp_path: Path
) -> None:
    content = torch.load(trained["ema"], weights_only=True)
    export(trained["ema"], tmp_path / "raw", weights="raw")
    averaged, raw = load_file(rrdb / "model.safetensors"), load_file(tmp_path / "raw" / "model.safetensors")
    for key, value in content["current_model_state"].items():
        assert torch.equal(raw[key], value) and torch.equal(averaged[key], content["state_dict"][key])
    assert any(not torch.equal(raw[key], averaged[key]) for key in raw)
    assert "weights of the last step" in (tmp_path / "raw" / "README.md").read_text()


def test_a_moving_average_that_there_is_not_is_refused(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last\.ckpt: was trained without a moving average.*--weights ema"):
        export(trained["srdiff"], tmp_path / "out", weights="ema")


def test_nothing_is_overwritten(trained: dict[str, Path], rrdb: Path) -> None:
    with pytest.raises(FileExistsError, match=r"rrdb-x4: exists, and nothing is overwritten"):
        export(trained["ema"], rrdb)


def test_an_error_leaves_nothing_behind(trained: dict[str, Path], tmp_path: Path) -> None:
    Image.new("RGB", (60, 200)).save(tmp_path / "narrow.png")
    with pytest.raises(ValueError, match=r"narrow\.png: has 60x200 pixels, but a pair needs 192x192"):
        export(trained["ema"], tmp_path / "out", images=[tmp_path / "narrow.png"])
    with pytest.raises(ValueError, match="two of them have the same name"):
        export(trained["ema"], tmp_path / "out", images=[bundled("coffee.png"), bundled("coffee.png")])
    assert [path.name for path in tmp_path.iterdir()] == ["narrow.png"]


def test_frozen_parts_with_a_source_are_named_and_not_packed(
    trained: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match="dino_vit: lies on this machine alone"):
        export(trained["srdiff"], tmp_path / "out", images=[bundled("coffee.png")])
    assert not [key for key in load_file(tmp_path / "out" / "model.safetensors") if key.startswith("region.")]
    source = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    weights = source["model"]["init_args"]["region"]["init_args"]["attention"]["init_args"]["weights"]
    state = load_method(trained["srdiff"]).state_dict()
    numbers = sum(value.numel() for key, value in state.items() if key.startswith("region."))
    named = f"`region.attention` ({numbers:,} numbers): {weights}"
    assert f"- {named}" in (tmp_path / "out" / "README.md").read_text()
    assert f"not packed, it has a source of its own: {named}" in caplog.text
    assert verify(tmp_path / "out")


def test_the_pairs_are_degraded_as_the_training_images(trained: dict[str, Path], tmp_path: Path) -> None:
    content = torch.load(trained["ema"], weights_only=True)
    area = {"class_path": "datamodules.degradations.area.Area", "init_args": {"scale": 4}}
    content["datamodule_hyper_parameters"]["degradation"] = area
    torch.save(content, tmp_path / "area.ckpt")
    export(tmp_path / "area.ckpt", tmp_path / "out", images=[bundled("coffee.png")])
    hr = np.asarray(Image.open(bundled("coffee.png"))).astype(float)
    top, left = ((side - 192) // 2 for side in hr.shape[:2])
    expected = hr[top : top + 192, left : left + 192].reshape(48, 4, 48, 4, 3).mean(axis=(1, 3))
    found = np.asarray(Image.open(tmp_path / "out" / "pairs" / "coffee_lr.png")).astype(float)
    assert np.abs(found - expected).max() <= 0.5
    assert "Area" in (tmp_path / "out" / "README.md").read_text()


def test_paths_of_this_machine_are_not_exported(trained: dict[str, Path], tmp_path: Path) -> None:
    content = torch.load(trained["ema"], weights_only=True)
    data = {"_class_path": "datamodules.folder.Folder", "train": str(tmp_path), "val": "~/mine", "predict": ["/a", "b"]}
    content["datamodule_hyper_parameters"] = {**data, "scale": 4, "up_kernel": "matlab"}
    torch.save(content, tmp_path / "net.ckpt")
    export(tmp_path / "net.ckpt", tmp_path / "out", images=[bundled("coffee.png")])
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config["data"]["init_args"] == {"scale": 4, "up_kernel": "matlab"}


def test_verify_says_equal_and_the_tolerance(rrdb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_main([str(rrdb), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert f"tolerance: {SAME} grey levels in the mean (float32 on the same kind of device)" in said
    assert said.count("equal") == 3 and "DIFFERS" not in said


def test_verify_in_another_precision_says_its_tolerance(rrdb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_main([str(rrdb), "--device", "cpu", "--precision", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert f"here: cpu, bfloat16, torch {torch.__version__}\ntolerance: 1 grey levels in the mean (bfloat16)" in said


def test_another_device_has_a_tolerance_of_its_own() -> None:
    assert tolerance("cpu", "cuda", "float32") == (OTHER_DEVICE, "float32 on another kind of device than cpu")
    assert tolerance("cuda", "cuda", "bfloat16")[0] == HALF
    assert SAME < OTHER_DEVICE < HALF


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_what_the_cpu_did(rrdb: Path) -> None:
    assert verify(rrdb, device="cuda")


def changed_picture(folder: Path) -> None:
    path = folder / "pairs" / "coffee_sr.png"
    pixels = np.asarray(Image.open(path)).copy()
    pixels[:16, :16] ^= 128
    Image.fromarray(pixels).save(path)


def changed_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({key: value * 1.1 for key, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("change", "differing"),
    [(changed_picture, ["coffee"]), (changed_weights, ["model.safetensors", "chelsea", "coffee"])],
)
def test_verify_says_which_differ(
    rrdb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], differing: list[str]
) -> None:
    folder = copied(rrdb, tmp_path / "copy")
    change(folder)
    assert verify_main([str(folder), "--device", "cpu"]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("DIFFERS")]
    for name in differing:
        assert any(f"DIFFERS  {name}:" in line for line in wrong), name
    if change is changed_picture:
        assert len(wrong) == 1


def test_a_picture_of_another_size_is_refused(rrdb: Path, tmp_path: Path) -> None:
    folder = copied(rrdb, tmp_path / "copy")
    Image.new("RGB", (64, 64)).save(folder / "pairs" / "coffee_sr.png")
    with pytest.raises(CheckpointError, match=r"coffee_sr\.png: has 64x64 pixels, but the result 192x192"):
        verify(folder)


def test_without_pairs_nothing_can_be_verified(rrdb: Path, tmp_path: Path) -> None:
    folder = copied(rrdb, tmp_path / "copy")
    (folder / "pairs" / "pairs.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"pairs\.json: is missing or damaged"):
        verify(folder)


def test_a_device_that_there_is_not_is_named(rrdb: Path) -> None:
    with pytest.raises(CheckpointError, match="--device nonsense: "):
        verify(rrdb, device="nonsense")


def test_the_global_seed_has_no_effect_on_a_verification(rrdb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert verify(rrdb)


def test_a_folder_replaces_a_checkpoint(rrdb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(["predict", "--ckpt_path", str(rrdb), "--input", str(rrdb / "pairs" / "coffee_lr.png"), "--output", "sr"])
    predicted, stored = Image.open("sr/coffee_lr.png"), Image.open(rrdb / "pairs" / "coffee_sr.png")
    assert np.array_equal(np.asarray(predicted), np.asarray(stored))
    scores = run(["validate", "--ckpt_path", str(rrdb)]).trainer.callback_metrics
    assert float(scores["val/psnr_y"]) > 0
    with pytest.raises(CheckpointError, match=r"rrdb-x4/model\.safetensors: was trained for x4, but .* x2"):
        run(["predict", "--ckpt_path", str(rrdb), "--data.init_args.scale", "2", "--input", ".", "--output", "other"])


def test_training_begins_with_the_weights_of_a_folder(
    rrdb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--model.init_args.optimizer.init_args.lr", "1e-9"]
    with caplog.at_level(logging.INFO):
        trained = run(["fit", *arguments(CONFIGS / "rrdb.yaml"), *options, "--ckpt_path", str(rrdb)])
    assert "a run begins with these weights, with a new optimizer" in caplog.text
    assert "the run goes on" not in caplog.text
    assert trained.trainer.global_step == 2
    stored = load_file(rrdb / "model.safetensors")
    for key, value in trained.model.state_dict().items():
        torch.testing.assert_close(value, stored[key], rtol=0, atol=1e-7)


def test_an_export_is_exported_again(rrdb: Path, tmp_path: Path) -> None:
    export(rrdb, tmp_path / "half", half=True)
    whole, half = (read_checkpoint(folder / "model.safetensors")["state_dict"] for folder in (rrdb, tmp_path / "half"))
    for key, value in whole.items():
        assert torch.equal(half[key], value.half().float())
    assert verify(tmp_path / "half")


def test_an_export_with_a_damaged_file_is_named(rrdb: Path, tmp_path: Path) -> None:
    folder = copied(rrdb, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        load_method(folder)
    (folder / "config.yaml").write_text("data: {}\n")
    copied_weights = (rrdb / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(copied_weights)
    with pytest.raises(CheckpointError, match=r"config\.yaml: describes no model"):
        load_method(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(WeightsError, match=r"copy: is no exported method, it has no config\.yaml"):
        load_method(folder)


def test_a_full_disk_is_named_and_leaves_nothing(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_modules.whole_file.os.fsync", full)
    with pytest.raises(OSError, match=r"model\.safetensors: cannot be written \(No space left on device\); make room"):
        export(trained["ema"], tmp_path / "out")
    assert not list(tmp_path.iterdir())
