"""Sweeps without W&B: the grid is run here, one after another, and compared; what is finished is not run again."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from lightning_modules.config import CONFIGS, read_yaml
from lightning_modules.config_errors import ConfigError
from lightning_modules.running import sweep
from lightning_modules.running.experiment import run
from tests.datamodules.trees import save
from tests.tiny.experiments import arguments

SHIPPED = sorted((CONFIGS / "sweeps").glob("*.yaml"))


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")


def written(path: Path, command: Sequence[str], **parameters: Sequence[object]) -> str:
    content = {
        "program": "lightning",
        "method": "grid",
        "parameters": {name.replace("__", "."): {"values": list(values)} for name, values in parameters.items()},
        "command": ["lightning", *command, "${args}"],
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


class Here:
    """Runs command lines in this process and notes them."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []

    def __call__(self, line: Sequence[str]) -> int:
        words = list(line[next(place for place, word in enumerate(line) if word in ("fit", "validate", "test")) :])
        self.lines.append(words)
        try:
            run(words)
        except ValueError as error:
            print(error)
            return 1
        return 0


def test_a_grid_of_trainings_is_run_compared_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb = ["--config", str(CONFIGS / "logger/wandb.yaml")]
    command = ["fit", *arguments(CONFIGS / "quickstart.yaml"), *wandb, "--model.init_args.lr_scheduler", "null"]
    file = written(tmp_path / "rates.yaml", command, model__init_args__optimizer__init_args__lr=[1e-3, -1.0, 1e-2])
    here = Here()
    assert sweep.main([file, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1"], here) == 1
    assert [words[0] for words in here.lines] == ["fit", "validate", "fit", "fit", "validate"]
    assert all("wandb.yaml" not in word for words in here.lines for word in words)
    assert "best-step=1.ckpt" in here.lines[1][here.lines[1].index("--ckpt_path") + 1]

    said, root = capsys.readouterr(), tmp_path / "runs/sweeps/rates"
    assert "error: lr=-1.0 has failed" in said.err and "| lr=0.001 |" in said.out and "| lr=0.01 |" in said.out
    assert (root / "compare.md").is_file() and (root / "compare.html").is_file()

    again = Here()
    sweep.main([file, "--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--count", "1"], again)
    assert again.lines == []
    sweep.main([file, "--trainer.max_steps", "2", "--trainer.val_check_interval", "1", "--count", "1"], again)
    assert [words[0] for words in again.lines] == ["fit", "validate"]  # another request


def test_a_grid_of_tests_needs_no_validation(tmp_path: Path) -> None:
    run(["fit", *arguments(CONFIGS / "quickstart.yaml"), "--trainer.max_steps", "1"])
    save(tmp_path / "photos" / "a.png", 0, 64, 64)
    data = [
        "--data",
        "datamodules.folder.Folder",
        "--data.init_args.test",
        "photos",
        "--data.init_args.num_workers",
        "0",
    ]
    command = ["test", "--ckpt_path", "runs/quickstart/version_0/checkpoints/last.ckpt", *data]
    overlays = [str(CONFIGS / f"sampler/{name}.yaml") for name in ("ddim", "heun")]
    file = written(tmp_path / "s.yaml", command, config=overlays, model__init_args__sampler__init_args__steps=[1, 2])
    here = Here()
    assert sweep.main([file], here) == 0
    assert [words[0] for words in here.lines] == ["test"] * 4
    names = sorted(path.name for path in (tmp_path / "runs/sweeps/s").iterdir() if path.is_dir())
    assert names == ["config=ddim_steps=1", "config=ddim_steps=2", "config=heun_steps=1", "config=heun_steps=2"]
    request = json.loads((tmp_path / "runs/sweeps/s/config=ddim_steps=2/request.json").read_text())
    assert "--model.init_args.sampler.init_args.steps=2" in request


def test_what_is_no_grid_is_refused_without_wandb(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("parameters: {}\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: is no sweep"):
        sweep.main([str(file)])
    with pytest.raises(ConfigError, match="--count: must be at least 1"):
        sweep.main([str(file), "--count", "0"])
    content = {"method": "random", "parameters": {"lr": {"min": 0, "max": 1}}}
    with pytest.raises(ConfigError, match="without W&B a sweep is a grid"):
        sweep.grid(content, file)
    assert sweep.grid({"parameters": {"a": {"value": 1}, "b": {"values": [2, 3]}}}, file) == [
        {"a": 1, "b": 2},
        {"a": 1, "b": 3},
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_can_be_read_and_name_what_exists(path: Path) -> None:
    content = read_yaml(path)
    cells = sweep.grid(content, path)
    assert len({sweep.label(cell) for cell in cells}) == len(cells) > 1
    words = [*content["command"], *(str(value) for cell in cells for value in cell.values())]
    configs = [word for word in words if str(word).endswith(".yaml")]
    assert configs and all((CONFIGS.parent / word).is_file() for word in configs)
    assert sweep.without_wandb([str(word) for word in content["command"][1:]])[0] in ("fit", "test")
    assert {"val/psnr_y": "fit", "test/psnr_y": "test"}[content["metric"]["name"]] == content["command"][1]


def test_labels_are_short() -> None:
    cell = {"model.init_args.region.init_args.attention": "lightning_modules.networks.attention_maps.Sobel", "lr": 1e-4}
    assert sweep.label({**cell, "config": "configs/sampler/ddim.yaml"}) == "attention=Sobel, lr=0.0001, config=ddim"
