"""The command `lightning import`, and how it finds the adapter of a method."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from lightning_modules.cascade import Cascade
from lightning_modules.checkpoint import CheckpointError, read_checkpoint
from lightning_modules.config import configured_model, load_method
from lightning_modules.config_errors import ConfigError
from lightning_modules.published import autoencoder, dossr, importing, sr3
from lightning_modules.published.importing import adapter_of, main
from lightning_modules.published.schedule_table import table
from lightning_modules.sr3 import SR3
from tests.tiny.experiments import CONFIGS, arguments
from tests.tiny.published import ldm_autoencoder


def experiment(folder: Path, name: str) -> Path:
    """A file that composes an experiment of configs/ and what shrinks it."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"compose": arguments(CONFIGS / f"{name}.yaml")[1::2]}))
    return path


def test_published_weights_become_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment(tmp_path, "sr3")
    source, _ = configured_model(config)
    assert isinstance(source, SR3)
    state: dict[str, Tensor] = {f"denoise_fn.{key}": value for key, value in source.network.state_dict().items()}
    state |= {name: row.float() for name, row in table(source.process.schedule).items()}  # type: ignore[attr-defined]
    torch.save(state, tmp_path / "I1_E1_gen.pth")

    main([str(tmp_path / "I1_E1_gen.pth"), "--config", str(config), "--out", str(tmp_path / "out" / "sr3.ckpt")])
    loaded = load_method(tmp_path / "out" / "sr3.ckpt")
    assert isinstance(loaded, SR3)
    torch.testing.assert_close(loaded.state_dict(), source.state_dict(), rtol=0, atol=0)
    assert read_checkpoint(tmp_path / "out" / "sr3.ckpt")["datamodule_hyper_parameters"]["scale"] == 4
    numbers = sum(value.numel() for value in source.state_dict().values())
    assert f"sr3.ckpt: {numbers:,} numbers of SR3" in capsys.readouterr().out

    state["betas"] = state["betas"] * 2
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other\.pth: betas: the file has"):
        main([str(tmp_path / "other.pth"), "--config", str(config), "--out", str(tmp_path / "no.ckpt")])
    assert not (tmp_path / "no.ckpt").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("compose: [nowhere.yaml]", "nowhere.yaml: no such config file"),
        ("modl: 1", "x.yaml:1: modl: no such key; did you mean model?"),
        ("trainer: {}", "describes no model"),
    ],
)
def test_import_names_what_is_wrong_with_a_config(content: str, named: str, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(named)):
        main(["x.pth", "--config", str(config), "--out", "x.ckpt"])


def test_the_autoencoder_becomes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], isolated_environment: Path
) -> None:
    tiny = isolated_environment / "tiny" / "vq_f4"
    description = json.loads((tiny / "config.json").read_text())
    architecture = {key: value for key, value in description.items() if not key.startswith("_")}
    monkeypatch.setattr(importing, "convert", lambda file, out: autoencoder.convert(file, out, architecture))
    stored = load_file(tiny / "diffusion_pytorch_model.safetensors")
    torch.save(ldm_autoencoder(stored, levels=3), tmp_path / "vq.pth")

    main([str(tmp_path / "vq.pth"), "--autoencoder", "--out", str(tmp_path / "vq_f4")])
    written = load_file(tmp_path / "vq_f4" / "diffusion_pytorch_model.safetensors")
    assert written.keys() == stored.keys() and all(torch.equal(written[key], stored[key]) for key in stored)
    assert f"{tmp_path}/vq_f4: config.json" in capsys.readouterr().out

    with pytest.raises(CheckpointError, match=r"none\.pth: no such checkpoint"):
        main([str(tmp_path / "none.pth"), "--autoencoder", "--out", str(tmp_path / "other")])


def test_a_checkpoint_and_an_autoencoder_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for typed in (["x.pth", "--out", "y"], ["x.pth", "--out", "y", "--autoencoder", "--config", "x.yaml"]):
        with pytest.raises(SystemExit) as stopped:
            main(typed)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and "lightning import" in said
        assert "--config" in said and "--autoencoder" in said


class Derived(SR3):
    """A method outside of the package."""


def test_a_method_finds_its_adapter_by_name() -> None:
    assert adapter_of(SR3) is adapter_of(Derived) is sr3.adapt is not dossr.adapt
    with pytest.raises(ValueError, match=r"Cascade has no published weights.*: dossr, .*sr3, srdiff"):
        adapter_of(Cascade)
