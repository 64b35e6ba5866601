"""Named protocols: what they hold a run to, the layouts of their data, and what their results state."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from skimage.data import astronaut

from lightning_modules.checkpoint import write_checkpoint
from lightning_modules.config import configured_model
from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS
from lightning_modules.evaluation.protocol import departures, names, read_protocol
from lightning_modules.evaluation.results import read_results
from lightning_modules.rrdb import RRDBRegressor
from lightning_modules.running.experiment import run
from tests.tiny.experiments import tiny_overlays

NAMES = {f"classic-bicubic-x{scale}-y@1" for scale in (2, 3, 4, 8)} | {
    "srdiff-div2k@1",
    "face-16-128@1",
    "face-64-512@1",
    "realsr-crop128@1",
    "drealsr-crop128@1",
    "div2k-val-realesrgan@1",
    "realset65@1",
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Tiny regressors, by scale."""
    folder, found = tmp_path_factory.mktemp("checkpoints"), {}
    torch.manual_seed(0)  # some initial weights make images of one colour
    for scale in (4, 8):
        config = folder / f"x{scale}.yaml"
        composed = [CONFIGS / "rrdb.yaml", *tiny_overlays(CONFIGS / "rrdb.yaml")]
        sizes = {"data": {"init_args": {"scale": scale}}}
        config.write_text(yaml.safe_dump({"compose": [str(path) for path in composed], **sizes}))
        found[scale] = folder / f"x{scale}.ckpt"
        write_checkpoint(*configured_model(config), found[scale])
    return found


def tiles(folder: Path, count: int, size: int) -> Path:
    """A folder of `count` images of `size` pixels a side."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(astronaut()[: 512 - 8 * index]).resize((size, size)).save(folder / f"{index}.png")
    return folder


def measure(checkpoint: Path, name: str, root: Path, *more: str) -> dict[str, Any]:
    options = ["--data.init_args.root", str(root), "--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu"]
    protocol = ["--config", str(CONFIGS / "protocol" / f"{name}.yaml")]
    run(["test", "--ckpt_path", str(checkpoint), *protocol, *options, *more])
    (path,) = Path.cwd().rglob("results.json")
    return dict(read_results(path).content)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFSR_WEIGHTS", raising=False)
    monkeypatch.setenv("DIFFSR_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_all_are_there() -> None:
    assert set(names()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_protocol_is_named_by_its_file_and_keeps_to_itself(name: str) -> None:
    protocol = read_protocol(name)
    assert protocol.settings["name"] == name
    data = protocol.data
    assert departures(protocol, data["class_path"], data["init_args"]) == []
    changed = {**data["init_args"], "scale": 16}
    assert departures(protocol, data["class_path"], changed) == [
        f"data.init_args.scale is 16, not {protocol.scale}",
    ]
    (line,) = departures(protocol, "datamodules.photos.Photos", data["init_args"])
    assert line.startswith("data is datamodules.photos.Photos, not ")


def test_results_state_the_protocol_and_its_columns_are_measured(checkpoints: dict[int, Path], here: Path) -> None:
    tiles(here / "sets" / "Set5", 5, 64)
    results = measure(checkpoints[4], "classic-bicubic-x4-y@1", here / "sets")
    assert results["protocol"] == "classic-bicubic-x4-y@1"
    assert results["measured"]["border"] == 4
    assert set(results["columns"]) <= {*results["means"], *results["not_measured"]}
    assert results["not_measured"].keys() == {"lpips"}
    assert len({row["image"] for row in results["rows"]}) == 5


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("val_crop 32", "data.init_args.val_crop is 32, not None"),
        ("degradation.init_args.rounding each_pass", "each_pass"),
    ],
)
def test_a_departure_is_refused(checkpoints: dict[int, Path], here: Path, option: str, said: str) -> None:
    tiles(here / "Set5", 5, 64)
    key, value = option.split()
    with pytest.raises(ValueError, match=rf"classic-bicubic-x4-y@1: this run is not under the protocol: .*{said}"):
        measure(checkpoints[4], "classic-bicubic-x4-y@1", here, f"--data.init_args.{key}", value)


def test_two_protocols_at_once_are_refused(checkpoints: dict[int, Path], here: Path) -> None:
    tiles(here / "Set5", 5, 64)
    own = {"name": "mine@1", "columns": ["psnr_y"]}
    callback = {"class_path": "callbacks.image_metrics.UnderProtocol", "init_args": own}
    (here / "own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    with pytest.raises(ValueError, match="under one protocol, not under classic-bicubic-x4-y@1 and mine@1"):
        measure(checkpoints[4], "classic-bicubic-x4-y@1", here, "--config", str(here / "own.yaml"))


def test_a_protocol_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"classic-x4@2: no such protocol; there are classic-bicubic-x2-y@1, "):
        read_protocol("classic-x4@2")


def test_a_face_protocol_takes_plain_folders(checkpoints: dict[int, Path], here: Path) -> None:
    tiles(here / "faces" / "hr_128", 2, 128)
    tiles(here / "faces" / "lr_16", 2, 16)
    results = measure(checkpoints[8], "face-16-128@1", here / "faces")
    assert results["data"]["low_resolution"] == "of the set"
    assert results["measured"]["border"] == 0
    assert [row["image"] for row in results["rows"] if row["score"] == "psnr_rgb"] == ["faces/0", "faces/1"]


def test_published_pairs_are_taken_as_they_are(checkpoints: dict[int, Path], here: Path) -> None:
    tiles(here / "val" / "gt", 2, 64)
    tiles(here / "val" / "lq", 2, 16)
    results = measure(checkpoints[4], "div2k-val-realesrgan@1", here / "val")
    assert results["data"]["count"] == 2


def test_photographs_without_targets_are_judged_by_scores_that_need_none(
    checkpoints: dict[int, Path], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles(here / "photos", 2, 33)
    spread = {"class_path": "tests.callbacks.test_image_metrics.Spread"}
    callback = {"class_path": "callbacks.image_metrics.ExtraScores", "init_args": {"scores": [spread]}}
    (here / "own.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    results = measure(checkpoints[4], "realset65@1", here / "photos", "--config", str(here / "own.yaml"))
    assert set(results["means"]) == {"spread"}
    assert results["not_measured"]["psnr_y"] == "compares with targets, and the set has none"
    assert results["data"]["hr_sha256"] is None and results["data"]["lr_sha256"]
    (sr,) = here.rglob("images/sr/photos/0.png")
    assert Image.open(sr).size == (132, 132)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("classic-bicubic-x4-y@1", r"no Set5 \(looked for .*Set5/HR.*No command downloads it: put its images into"),
        ("realsr-crop128@1", r"prepare it with `lightning pack realsr RAW .*may also hold plain folders: test_HR and"),
        ("realset65@1", r"no such file or folder of images"),
    ],
)
def test_missing_data_are_named_before_a_model_is_built(
    checkpoints: dict[int, Path], here: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr(RRDBRegressor, "__init__", never)
    with pytest.raises(ConfigError, match=said):
        measure(checkpoints[4], name, here / "nothing")
