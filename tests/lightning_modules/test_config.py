"""The reader of configs: layers, what a command line names, single parts."""

import os
from pathlib import Path

import pytest
import torch

from datamodules.degradations.bicubic import Bicubic
from lightning_modules.checkpoint import CheckpointError, newest
from lightning_modules.cli import degradation
from lightning_modules.config import read_command_line, take_option
from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS, layers, read_yaml


def test_layers_are_depth_first_and_end_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("compose: [sub/b.yaml, c.yaml]")
    (tmp_path / "sub" / "b.yaml").write_text("compose: [../c.yaml]")
    (tmp_path / "c.yaml").write_text("seed_everything: 1")
    assert [path.name for path in layers(tmp_path / "a.yaml")] == ["c.yaml", "b.yaml", "c.yaml", "a.yaml"]


def test_layers_refuse_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("compose: [b.yaml]")
    (tmp_path / "b.yaml").write_text("compose: [a.yaml]")
    with pytest.raises(ConfigError, match="composes itself"):
        list(layers(tmp_path / "a.yaml"))


def test_layers_name_an_absent_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("compose: [nowhere.yaml]")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config file"):
        list(layers(tmp_path / "a.yaml"))


def test_take_option_removes_both_spellings() -> None:
    rest = ["--config", "a", "--x", "1", "--config=b"]
    assert take_option(rest, "--config", "-c") == ["a", "b"]
    assert rest == ["--x", "1"]


@pytest.mark.parametrize("option", [["--input", ""], ["--input="], ["--output", ""], ["--ckpt_path="], ["--config"]])
def test_an_empty_value_is_refused(option: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{option[0].rstrip('=')} is empty"):
        read_command_line(["predict", *option])


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("trainer:\n  max_steps: 1\ndata:\n  class_path: x\ntrainer:\n  devices: 1\n")
    (tmp_path / "b.yaml").write_text(f"compose: [{tmp_path}/a.yaml]\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:5: the key 'trainer' is written twice, first in line 1"):
        list(layers(tmp_path / "b.yaml"))
    (tmp_path / "a.yaml").write_text("data: {init_args: {scale: 2, crop: 8, scale: 4}}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: the key 'scale' is written twice"):
        list(layers(tmp_path / "b.yaml"))
    (tmp_path / "a.yaml").write_text("a: &shared {x: 1}\nb: {<<: *shared, x: 2}\nc: [{x: 1}, {x: 2}]\n")
    assert read_yaml(tmp_path / "a.yaml")["b"] == {"x": 2}


def test_typed_options_come_after_the_files() -> None:
    typed = ["fit", "--trainer.max_steps", "3", "--config", str(CONFIGS / "srdiff_yoda.yaml")]
    flags = read_command_line(typed).flags()
    files = [Path(flag.removeprefix("--config=")).name for flag in flags if flag.startswith("--config=")]
    assert files[0] == "base.yaml" and files[-1] == "srdiff_yoda.yaml"
    assert flags[-2:] == ["--trainer.max_steps", "3"]


MODEL = ["--model", "lightning_modules.cascade.Cascade"]  # otherwise the packaged model is looked for


def test_several_inputs_are_several(tmp_path: Path) -> None:
    one = read_command_line(["predict", *MODEL, "--input", "a"]).asked["data"]["init_args"]
    two = read_command_line(["predict", *MODEL, "--input", "a", "--input=b", "--output", "c"])
    assert one == {"predict": "a"} and two.asked["data"]["init_args"] == {"predict": ["a", "b"]}
    assert two.asked["trainer"]["callbacks"][0]["init_args"] == {"folder": "c"}
    again = read_command_line(["predict", *MODEL, "--skip_existing", "--input", "a", "--output", "c"])
    assert again.asked["trainer"]["callbacks"][0]["init_args"] == {"folder": "c", "skip_existing": True}
    assert read_command_line(["predict", *MODEL, "--overwrite"]).asked["trainer"]["callbacks"][0]["init_args"] == {
        "overwrite": True
    }
    with pytest.raises(ConfigError, match="--output is given 2 times"):
        read_command_line(["predict", *MODEL, "--input", "a", "--output", "b", "--output", "c"])


def test_a_checkpoint_below_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for typed in (["--ckpt_path=~/x.ckpt"], ["--ckpt_path", "~/x.ckpt"]):
        with pytest.raises(CheckpointError, match=f"^{tmp_path}/x.ckpt: no such checkpoint"):
            read_command_line(["predict", *typed])


def run_folder(root: Path, name: str, time: int, **monitored: str) -> Path:
    """The checkpoints of a run, as old as `time` says."""
    folder = root / name / "checkpoints"
    folder.mkdir(parents=True)
    for file in ("step=5.ckpt", "last.ckpt"):
        torch.save({"state_dict": {}, "callbacks": {"ModelCheckpoint": monitored}}, folder / file)
        os.utime(folder / file, (time, time))
    return folder


def test_last_is_that_of_the_newest_run_and_best_what_it_monitored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "elsewhere" / "mine"
    with pytest.raises(CheckpointError, match=r"elsewhere/mine: no run there has a checkpoints/last\.ckpt"):
        newest(runs, "last")
    run_folder(runs, "version_0", time=2_000, monitor="val/psnr_y", best_model_path="/moved/checkpoints/step=5.ckpt")
    old = run_folder(runs, "version_1", time=1_000)
    (runs / "last").symlink_to("version_1")
    assert newest(runs, "last") == runs / "version_0" / "checkpoints" / "last.ckpt"
    assert newest(runs, "best") == runs / "version_0" / "checkpoints" / "step=5.ckpt"

    os.utime(old / "last.ckpt", (3_000, 3_000))
    with pytest.raises(CheckpointError, match=r"version_1/checkpoints: the run monitored no metric"):
        newest(runs, "best")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("trainer: {logger: {init_args: {save_dir: elsewhere}}}")
    with pytest.raises(CheckpointError, match=r"^elsewhere/mine/version_1/checkpoints/last\.ckpt: was not written by"):
        read_command_line(["test", "--config", "mine.yaml", "--ckpt_path", "last"])
    with pytest.raises(CheckpointError, match=r"^runs/other: no run there"):
        read_command_line(["test", "--experiment", "other", "--ckpt_path", "last"])


def test_a_degradation_is_built_alone(tmp_path: Path) -> None:
    presets = CONFIGS / "data" / "degradation"
    assert degradation([str(CONFIGS / "resshift.yaml")]).scale == 4
    assert degradation([str(presets / "resshift.yaml")], 2).scale == 2
    default = degradation([str(CONFIGS / "relay_x4.yaml"), str(presets / "area.yaml")])
    assert type(default).__name__ == "Area", "a class laid over another drops what only the other takes"
    (tmp_path / "x2.yaml").write_text("data: {init_args: {scale: 2, degradation: null}}")
    nothing = degradation([str(tmp_path / "x2.yaml")])
    assert isinstance(nothing, Bicubic) and nothing.scale == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("gt_usmm: true", r"x\.yaml:2: data\.init_args\.degradation\.init_args\.gt_usmm: .*did you mean gt_usm"),
        ("gt_usm: 7", r"x\.yaml:2: data\.init_args\.degradation\.init_args\.gt_usm: expected bool, got 7"),
    ],
)
def test_a_mistake_in_a_degradation_is_named(content: str, said: str, tmp_path: Path) -> None:
    preset = CONFIGS / "data" / "degradation" / "resshift.yaml"
    (tmp_path / "x.yaml").write_text(
        f"compose: [{preset}]\ndata: {{init_args: {{degradation: {{init_args: {{{content}}}}}}}}}\n"
    )
    with pytest.raises(ConfigError, match=said):
        degradation([str(tmp_path / "x.yaml")])
