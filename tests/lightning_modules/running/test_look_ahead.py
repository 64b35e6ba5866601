"""What an experiment needs and the machine lacks is told at once, before a model is built or a network is asked."""

import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from PIL import Image

from lightning_modules.config_errors import ConfigError
from lightning_modules.hub import place_of
from lightning_modules.running.experiment import run
from lightning_modules.running.look_ahead import lacking, without_accelerator
from tests.tiny.experiments import CONFIGS, TINY, arguments


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a machine without a GPU and without a network; a connection or a model is a failure."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("a connection was opened or a model was built")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(LightningCLI, "instantiate_classes", refuse)
    return tmp_path


def said(*arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        run(arguments)
    first, *lines = str(error.value).splitlines()
    assert first == "this machine lacks what the experiment needs:"
    return [line.strip() for line in lines]


def test_a_papers_experiment_on_a_laptop_lists_all_that_is_missing(laptop: Path) -> None:
    accelerator, encoder, data, attention = said("fit", "--config", str(CONFIGS / "srdiff_yoda.yaml"))
    assert (
        accelerator.startswith("trainer.accelerator: PyTorch finds no gpu")
        and "configs/hardware/cpu.yaml" in accelerator
    )
    assert "configs/rrdb.yaml" in encoder and "--model.init_args.encoder_weights" in encoder
    assert data.startswith("data: DIV2K is not ready: data/div2k/") and "lightning pack div2k RAW data/div2k" in data
    assert attention.endswith("facebook/dino-vits8 of the hub would be downloaded")
    assert not list(laptop.iterdir())


def test_offline_what_would_be_downloaded_is_missing(laptop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = said("fit", "--config", str(CONFIGS / "srdiff_yoda.yaml"))
    assert len(lines) == 4 and "facebook/dino-vits8 of the attention map are neither" in lines[2]
    latent = said("fit", "--config", str(CONFIGS / "dossr_sd21.yaml"))
    wanted = ("no gpu", "RealESRNet_x4plus.pth", "2-1-base/unet: no UNet2DConditionModel", "no AutoencoderKL", "DF2K")
    assert all(word in line for word, line in zip(wanted, latent, strict=True))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--model.init_args.encoder_weights", "absent.ckpt"], "absent.ckpt: no such checkpoint; give an RRDB as"),
        (["--data", "datamodules.folder.Folder"], "set train to"),
        (
            ["--config", str(CONFIGS / "sampler" / "skip_policy.yaml")],
            "weights/skip_policy.ckpt: no such checkpoint; give",
        ),
    ],
    ids=["encoder", "folder", "policy"],
)
def test_each_part_speaks_for_itself(options: list[str], wanted: str, laptop: Path) -> None:
    (line,) = said("fit", *arguments(CONFIGS / "srdiff.yaml"), *options)
    assert wanted in line


@pytest.mark.parametrize("config", ["skipdiff_sr3.yaml", "skipdiff_srdiff.yaml"])
def test_a_skip_policy_asks_for_its_base(config: str, laptop: Path) -> None:
    lines = said("fit", "--config", str(CONFIGS / config), "--trainer.accelerator", "cpu")
    assert "weights/base.ckpt: no such checkpoint; give a trained diffusion method" in lines[0]


def test_an_encoder_is_not_asked_for_where_a_checkpoint_holds_it() -> None:
    model = {"class_path": "lightning_modules.srdiff.SRDiff"}
    model["init_args"] = {"encoder_weights": None, "freeze_encoder": True}  # type: ignore[assignment]
    assert len(lacking({"model": model}, splits=["train"], fresh=True)) == 1
    assert lacking({"model": model}, splits=["train"], fresh=False) == []


def test_only_the_splits_that_are_read_must_be_there(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    data = {"class_path": "datamodules.folder.Folder", "init_args": {"train": str(tmp_path), "crop": 32}}
    assert lacking({"data": data}, splits=["train"], fresh=True) == []
    assert lacking({"data": data}, splits=["train", "val"], fresh=True) == []  # a training may go without validation
    (line,) = lacking({"data": data}, splits=["val"], fresh=False)
    assert "set val" in line
    (line,) = lacking({"data": data}, splits=["predict"], fresh=False)
    assert "set predict" in line


def test_training_without_validation_needs_no_validation_set(laptop: Path) -> None:
    Image.new("RGB", (64, 64)).save(laptop / "a.png")
    options = ["--data", "datamodules.folder.Folder", "--data.init_args.train", ".", "--trainer.limit_val_batches", "0"]
    (line,) = said("fit", *arguments(CONFIGS / "srdiff.yaml"), *options, "--model.init_args.freeze_encoder", "true")
    assert "encoder" in line


def test_sets_at_urls_are_not_looked_at(laptop: Path) -> None:
    data = {"class_path": "datamodules.div2k.DIV2K", "init_args": {"root": "https://example.org/div2k"}}
    assert lacking({"data": data}, splits=["train", "val"], fresh=True) == []


def test_weights_are_looked_for_on_the_hub_only_where_they_can_be_there(laptop: Path) -> None:
    assert place_of("facebook/dino-vits8") == "hub"
    for local in ("./weights/dino", "~/dino", "/weights/dino", "weights/models/dino", "no such name"):
        assert place_of(local) == "nowhere", local
    (laptop / "models" / "dino").mkdir(parents=True)
    assert place_of("models/dino") == "folder"
    assert place_of("models/dimo") == "nowhere"  # a mistyped folder

    snapshot = laptop / "hub" / "models--facebook--dino-vits8"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("abc")
    (snapshot / "snapshots" / "abc").mkdir(parents=True)
    (snapshot / "snapshots" / "abc" / "config.json").write_text("{}")
    assert place_of("facebook/dino-vits8") == "cache"
    assert place_of("facebook/dino-vits8", "vae") == "hub"


@pytest.mark.parametrize(("accelerator", "lacks"), [("gpu", True), ("cuda", True), ("cpu", False), ("auto", False)])
def test_an_accelerator_that_is_not_there_is_told(accelerator: str, lacks: bool, laptop: Path) -> None:
    assert (without_accelerator(accelerator) is not None) == lacks


def test_nothing_is_said_where_nothing_is_missing() -> None:
    data = {"class_path": "datamodules.photos.Photos", "init_args": {}}
    assert (
        TINY.is_dir() and lacking({"trainer": {"accelerator": "cpu"}, "data": data}, splits=["train"], fresh=True) == []
    )
