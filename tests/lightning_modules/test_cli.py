"""The command line: composition, precedence, errors in one message, prediction from a checkpoint alone."""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.benchmark_sets import BenchmarkSet
from lightning_modules.checkpoint import write_checkpoint
from lightning_modules.cli import COMMANDS, main
from lightning_modules.config import configured_model, read_command_line
from lightning_modules.config_errors import ConfigError
from lightning_modules.metrics.psnr import PSNR
from lightning_modules.running.experiment import run
from tests.tiny.experiments import CONFIGS, TINY, arguments, tiny_overlays

SRDIFF = CONFIGS / "srdiff.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short SRDiff run."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(["fit", *arguments(SRDIFF)])
    return folder / "runs" / "srdiff" / "version_0"


def last(trained: Path) -> str:
    return str(trained / "checkpoints" / "last.ckpt")


def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: Sequence[str]) -> str:
    """Runs the console script, which must fail; returns all that it said."""
    monkeypatch.setattr(sys, "argv", ["lightning", *argv])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code not in (0, None)
    said = capsys.readouterr()
    text = f"{said.out}{said.err}{stopped.value.code}"
    assert "Traceback" not in text
    return text


def test_saved_config_runs_again_as_it_is(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert "compose" not in saved and saved["experiment"] == "srdiff"
    monkeypatch.chdir(tmp_path)
    again = run(["fit", "--config", str(trained / "config.yaml")])
    first = torch.load(last(trained), weights_only=True)["state_dict"]
    assert (tmp_path / "runs" / "srdiff" / "version_0").is_dir()
    for key, value in again.model.state_dict().items():
        torch.testing.assert_close(value, first[key], rtol=0, atol=0, msg=key)


def test_what_is_typed_beats_the_checkpoint(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--config", str(TINY / "base.yaml")]
    stored = run(["test", "--ckpt_path", last(trained), *tiny]).model
    typed = run(["test", "--ckpt_path", last(trained), *tiny, "--model.init_args.sampler.init_args.steps", "3"]).model
    overlay = run(["test", "--ckpt_path", last(trained), *tiny, "--config", str(CONFIGS / "sampler/ddim.yaml")]).model
    assert (stored.sampler.steps, typed.sampler.steps) == (2, 3)
    assert overlay.protocol().startswith("ddim-")


def test_a_sampler_of_another_class_begins_with_its_own_defaults(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--ckpt_path", last(trained), "--config", str(TINY / "base.yaml")]  # it stores Ancestral's eta of 1
    typed = run(["test", *tiny, "--model.init_args.sampler", "lightning_modules.diffusion.samplers.DDIM"]).model
    assert (typed.sampler.steps, typed.sampler.eta) == (2, 0.0)
    stored = run(["test", *tiny, "--model.init_args.sampler.init_args.eta", "0.5"]).model
    assert stored.protocol() == "ancestral-2-eta0.5"


def test_resume_continues_the_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resumed = run(["fit", *arguments(SRDIFF), "--ckpt_path", last(trained), "--trainer.max_steps", "4"])
    straight = run(["fit", *arguments(SRDIFF), "--trainer.max_steps", "4"])
    assert resumed.trainer.global_step == 4
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, straight.model.state_dict()[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--model.init_args.smapler", "3"], "--model.init_args.smapler: no such key .*; did you mean sampler?"),
        (["--trainer.max_stepz", "3"], "--trainer.max_stepz: no such key in trainer; did you mean max_steps?"),
        (["--trainer.max_step=3"], "--trainer.max_step: no such key in trainer; did you mean max_steps?"),
        (["--modle", "3"], "--modle: no such key; did you mean model?"),
        (["--max_steps", "3"], "--max_steps: no such key; it is allowed as trainer.max_steps"),
        (["--model.init_args.crop", "3"], "in model.init_args; it is allowed as data.init_args.crop"),
        (["--data.init_args.chanels", "3"], "did you mean model.init_args.network.init_args.channels?"),
        (["--data.init_args.scal", "3"], "--data.init_args.scal: no such key in data.init_args; did you mean scale?"),
        (["--model.init_args.sampler.init_args.stepz", "3"], "sampler.init_args.stepz: .*; did you mean steps?"),
        (["--trainer.callbacks+=callbacks.ema.EMA", "--trainer.callbacks.init_args.decai=3"], "did you mean decay?"),
        (
            ["--model.init_args.process.class_path", "lightning_modules.diffusion.vp.VPP"],
            "--model.init_args.process: .*VPP.*; did you mean lightning_modules.diffusion.vp.VP?",
        ),
        (["--trainer.max_steps", "many"], "--trainer.max_steps: expected int, got many"),
        (["--data.init_args.val_crop", "big"], "--data.init_args.val_crop: expected int or null, got big"),
        (["--model.init_args.norm", "l3"], r"--model.init_args.norm: expected Literal\['l1', 'l2'\], got l3"),
        (["--data.init_args.root", "${nowhere}"], "data.init_args.root: Interpolation key 'nowhere' not found"),
        (["--data.init_args.crop", "30"], r"crop: 30 is not a multiple of scale 4 \[--data.init_args.crop\]"),
        (["--ckpt_pat", "x"], "--ckpt_pat: no such key; did you mean ckpt_path?"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option_and_what_is_near(
    option: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = fail(monkeypatch, capsys, ["fit", *arguments(SRDIFF), *option]).splitlines()
    error = [line for line in lines if line.startswith("error: ")]
    assert len(error) == 1 and re.search(said.replace("?", r"\?"), error[0]), lines
    assert lines[-1].startswith("(where it comes from:")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "trainer:\n  max_stepz: 3\n",
            "mine.yaml:2: trainer.max_stepz: no such key in trainer; did you mean max_steps?",
        ),
        ("modl: 3\n", "mine.yaml:1: modl: no such key; did you mean model?"),
        (
            "model:\n  init_args:\n    # a comment\n    sampler: {init_args: {stepz: 3}}\n",
            "mine.yaml:4: model.init_args.sampler.init_args.stepz: no such key",
        ),
        (
            "trainer:\n  callbacks+:\n  - class_path: callbacks.ema.EMA\n    init_args:\n      decai: 3\n",
            "mine.yaml:5: trainer.callbacks.init_args.decai: no such key",
        ),
        ("trainer:\n  devices: 1\ntrainer:\n  max_steps: 1\n", "mine.yaml:3: the key 'trainer' is written twice"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(
    content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    assert said in fail(monkeypatch, capsys, ["fit", *arguments(SRDIFF), "--config", str(tmp_path / "mine.yaml")])


def test_what_is_printed_can_be_read_back(tmp_path: Path) -> None:
    def printed(*typed: str) -> str:
        command = [Path(sys.executable).with_name("lightning"), "fit", *typed, "--print_config"]
        return subprocess.run(command, capture_output=True, check=True, text=True, cwd=tmp_path).stdout

    first = printed(*arguments(CONFIGS / "srdiff_yoda.yaml"))
    (tmp_path / "mine.yaml").write_text(first)
    assert printed("--config", "mine.yaml") == first


def test_a_failed_start_leaves_no_folder_and_last_names_the_newest_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    nothing = ["--data", "datamodules.folder.Folder", "--data.init_args.train", str(tmp_path / "nowhere")]
    assert "nowhere" in fail(monkeypatch, capsys, ["fit", *arguments(SRDIFF), *nothing])
    experiment = tmp_path / "runs" / "srdiff"
    assert not experiment.exists()

    for version in (0, 1):
        run(["fit", *arguments(SRDIFF)])
        assert (experiment / "last").resolve() == experiment / f"version_{version}"
        assert (experiment / "last" / "config.yaml").is_file() and (experiment / "last" / "metrics.csv").is_file()
    run(["test", *arguments(SRDIFF), "--ckpt_path", "last"])
    assert (experiment / "version_2" / "config.yaml").is_file()
    assert (experiment / "last").resolve() == experiment / "version_1", "no training run"


def test_a_fast_dev_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["--data.init_args.root", "null", "--trainer.fast_dev_run", "1"]
    assert run(["fit", *arguments(SRDIFF), *typed]).trainer.global_step == 1
    assert not list(tmp_path.iterdir())


def test_validation_counts_steps_where_gradients_are_accumulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ("accumulate_grad_batches=3", "val_check_interval=2", "max_steps=4")
    run(["fit", *arguments(SRDIFF), *(f"--trainer.{option}" for option in typed)])
    scores = sorted(path.name for path in tmp_path.glob("runs/srdiff/version_0/scores/*"))
    assert scores == ["val-step-000002.csv", "val-step-000004.csv"]
    saved = yaml.safe_load((tmp_path / "runs/srdiff/version_0/config.yaml").read_text())
    assert saved["trainer"]["val_check_interval"] == 2, "run again, it must mean the same"


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_is_not_supported_is_one_line(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fail(monkeypatch, capsys, ["fit", *arguments(SRDIFF), "--trainer.precision", precision])
    assert f"--trainer.precision {precision}: weights and coefficients are kept in float32 here" in said
    assert "give one of bf16-mixed, 16-mixed, 32-true" in said


def test_wandb_without_a_login_is_one_line(tmp_path: Path) -> None:
    """In a process of its own, for W&B remembers that it is offline in this one."""
    without = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [Path(sys.executable).with_name("lightning"), "fit", *arguments(SRDIFF)]
    command += ["--config", str(CONFIGS / "logger" / "wandb.yaml")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**without, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: W&B: " in done.stderr and "WANDB_MODE=offline" in done.stderr


def test_last_continues_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(["fit", *arguments(SRDIFF), "--checkpoint_every", "1"])
    older = Path("runs/srdiff/version_0/checkpoints/step=2.ckpt").rename("runs/srdiff/version_0/checkpoints/older.ckpt")
    assert run(["fit", *arguments(SRDIFF), "--ckpt_path", "last", "--trainer.max_steps", "3"]).trainer.global_step == 3
    line = read_command_line(["test", "--experiment", "srdiff", "--ckpt_path=last"])
    assert line.options[-1] == "--ckpt_path=runs/srdiff/version_0/checkpoints/last.ckpt"
    steps = [line.split(",")[0:3] for line in Path("runs/srdiff/version_0/metrics.csv").read_text().splitlines()]
    assert len(steps) == 4, "one table, with each step once"

    # From an older checkpoint a run of its own begins, which does not overwrite the newer one.
    assert read_command_line(["fit", *arguments(SRDIFF), f"--ckpt_path={older}"]).run is None
    newest = "runs/srdiff/version_0/checkpoints/last.ckpt"
    assert read_command_line(["fit", *arguments(SRDIFF), f"--ckpt_path={newest}"]).run == "version_0"


def test_checkpoint_every_reaches_what_writes_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    more = ["--trainer.callbacks+=callbacks.ema.EMA"] if "ema" not in SRDIFF.read_text() else []
    trained = run(["fit", *arguments(SRDIFF), *more, "--checkpoint_every", "1", "--trainer.max_steps", "1"])
    assert (tmp_path / "runs/srdiff/version_0/checkpoints/step=1.ckpt").is_file()
    saved = yaml.safe_load((tmp_path / "runs/srdiff/version_0/config.yaml").read_text())
    assert saved["checkpoint_every"] == 1 and trained.trainer.global_step == 1
    with pytest.raises(ConfigError, match="--checkpoint_every: must be at least 1, got 0"):
        run(["fit", *arguments(SRDIFF), "--checkpoint_every", "0"])
    with pytest.raises(ConfigError, match=r"--checkpoint_every: 0 of trainer\.callbacks write checkpoints"):
        run(["fit", *arguments(SRDIFF), "--checkpoint_every", "1", "--trainer.callbacks", "null"])


def test_best_is_what_the_run_monitored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monitor = {"monitor": "val/psnr_y", "mode": "min", "filename": "{step}-monitored", "save_top_k": 1}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": monitor}
    changed = {"callbacks+": [callback], "max_steps": 3, "val_check_interval": 1}
    (tmp_path / "monitored.yaml").write_text(yaml.safe_dump({"trainer": changed}))
    trained = run(["fit", *arguments(SRDIFF), "--config", "monitored.yaml"])
    expected = trained.trainer.checkpoint_callbacks[-1].best_model_path
    line = read_command_line(["test", "--experiment", "srdiff", "--ckpt_path", "best"])
    assert "monitored" in expected and Path(line.options[-1].removeprefix("--ckpt_path=")).samefile(expected)


def test_help_lists_the_commands_and_says_what_to_type_next() -> None:
    for name in ("lightning", "diffsr"):
        script = Path(sys.executable).with_name(name)
        said = subprocess.run([script, "--help"], capture_output=True, check=True, text=True).stdout
        assert said.startswith("lightning") and "lightning fit --config configs/quickstart.yaml" in said
        for command in COMMANDS:
            assert re.search(rf"^  {command} ", said, re.MULTILINE), command


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; sys.argv = ['lightning', '--help']; from lightning_modules.cli import main; main(); "
    code += "print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stderr.split()
    assert not {"torch", "lightning", "numpy", "yaml", "jsonargparse"} & set(loaded)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_of_its_own(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if command in ("pack", "doctor", "preview") and find_spec("datamodules.prepare") is None:
        pytest.skip("datamodules.prepare is not there")
    monkeypatch.setattr(sys, "argv", ["lightning", command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and f"{command} [" in said and "--help" in said


def test_an_unknown_command_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no command 'train'; there are fit, validate" in fail(monkeypatch, capsys, ["train"])


def test_scale_must_be_the_checkpoints(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fail(monkeypatch, capsys, ["test", "--ckpt_path", last(trained), "--data.init_args.scale", "2"])
    assert "trained for x4" in said and "x2" in said


def test_checkpoint_of_another_method_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fail(monkeypatch, capsys, ["test", *arguments(CONFIGS / "rrdb.yaml"), "--ckpt_path", last(trained)])
    assert "SRDiff" in said and "RRDBRegressor" in said


def test_a_model_that_nobody_trained_is_not_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fail(monkeypatch, capsys, ["test", *arguments(SRDIFF)])
    assert "SRDiff has only its initial weights to test with" in said and "--ckpt_path" in said
    assert not list(tmp_path.rglob("*.csv"))


def test_conversion_takes_the_config_of_a_run(trained: Path) -> None:
    model, config = configured_model(trained / "config.yaml")
    assert type(model).__name__ == "SRDiff" and config["data"]["init_args"]["scale"] == 4


# Prediction.


def test_a_model_refused_by_a_constructor_names_the_option(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = fail(monkeypatch, capsys, ["predict", "--config", str(CONFIGS / "command" / "cascade.yaml")])
    assert "stages: a cascade needs checkpoints" in said and "[--model.init_args.stages]" in said


ENLARGING = {"scale": 4, "up_kernel": "matlab"}


def test_data_of_another_class_take_from_the_checkpoint_only_how_images_are_enlarged(trained: Path) -> None:
    checkpoint = ["--ckpt_path", last(trained)]
    own = read_command_line(["test", *checkpoint]).stored["data"]
    assert own["class_path"] == "datamodules.photos.Photos" and own["init_args"]["val_crop"] == 64
    other = read_command_line(["test", *checkpoint, "--config", str(CONFIGS / "data" / "set5.yaml")]).stored["data"]
    assert other == {"class_path": "datamodules.benchmark_sets.BenchmarkSet", "init_args": ENLARGING}


def test_another_set_of_the_same_class_takes_no_more(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)

    def stored(command: str, *typed: str) -> dict[str, object]:
        return dict(read_command_line([command, "--ckpt_path", last(trained), *typed]).stored["data"]["init_args"])

    named = ["--config", str(CONFIGS / "data" / "photos.yaml")]
    assert stored("test", *named) == stored("validate", *named) == ENLARGING, "the config says what is tested"
    assert stored("fit", *named)["val_crop"] == 64, "a training goes on with what it had"
    assert stored("test", "--data.init_args.num_workers", "0")["val_crop"] == 64
    for command in ("test", "fit"):
        assert stored(command, "--data.init_args.root", "elsewhere") == ENLARGING
    assert re.search("was trained on other data; not taken over from there: .*val_crop", caplog.text)


def test_a_benchmark_scores_what_the_benchmark_is_whatever_the_checkpoint_was_trained_with(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crop of 64 that the checkpoint stores must not reach Set5, and bicubic's score is that of whole images."""
    monkeypatch.chdir(tmp_path)
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 44, 3), dtype=np.uint8)
        path = tmp_path / "data/benchmark/Set5/HR" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((88, 80), Image.Resampling.BICUBIC).save(path)
    run(["test", "--ckpt_path", last(trained), "--config", str(CONFIGS / "data" / "set5.yaml")])
    (results,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/*/results.json"))
    assert results["data"]["images"] == "whole"
    data = BenchmarkSet(str(tmp_path / "data/benchmark"), num_workers=0)
    scores = []
    for raw in data.test_dataloader():
        batch = data.on_after_batch_transfer(raw, 0)
        assert batch["hr"].shape[-2:] == (80, 88)
        up, hr = (((batch[name] + 1) * 127.5).round().clamp(0, 255).double() / 255 for name in ("up", "hr"))
        scores.append(float(PSNR("y")(up[..., 4:-4, 4:-4], hr[..., 4:-4, 4:-4])))
    assert results["means"]["psnr_y"]["bicubic"] == pytest.approx(sum(scores) / 5, abs=1e-3)


def predict(checkpoint: str, images: Path, out: Path) -> None:
    run(["predict", "--ckpt_path", checkpoint, "--input", str(images), "--output", str(out)])


def test_predict_enlarges_any_image_by_exactly_the_scale(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (13, 9, 4), dtype=np.uint8)
    folder = tmp_path / "in" / "deeper"
    folder.mkdir(parents=True)
    Image.fromarray(pixels[..., :3]).save(folder / "odd.png")
    Image.fromarray(pixels[..., 0]).save(folder / "grey.png")
    Image.fromarray(pixels).save(folder / "alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(pixels, mode="CMYK").save(folder / "cmyk.jpg")
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera lay on its side
    Image.fromarray(pixels[..., :3]).save(folder / "rotated.jpg", exif=rotated)
    predict(last(trained), tmp_path / "in", tmp_path / "out")
    written = {path.name: Image.open(path).size for path in (tmp_path / "out").rglob("*.png")}
    sizes = dict.fromkeys(("odd.png", "grey.png", "alpha.png", "sixteen.png", "cmyk.png"), (36, 52))
    assert written == {**sizes, "rotated.png": (52, 36)}
    assert not (tmp_path / "config.yaml").exists() and not (tmp_path / "runs").exists()


def test_predict_enlarges_by_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = {"compose": [str(CONFIGS / "sr3.yaml"), *map(str, tiny_overlays(CONFIGS / "sr3.yaml"))]}
    config = tmp_path / "x3.yaml"
    config.write_text(yaml.safe_dump({**tiny, "data": {"init_args": {"scale": 3, "crop": 48}}}))
    write_checkpoint(*configured_model(config), tmp_path / "x3.ckpt")
    Image.new("RGB", (9, 13)).save(tmp_path / "a.png")
    predict(str(tmp_path / "x3.ckpt"), tmp_path / "a.png", tmp_path / "out")
    assert Image.open(tmp_path / "out" / "a.png").size == (27, 39)


def test_predict_names_the_unreadable_and_does_the_rest(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "good.png")
    whole = (tmp_path / "in" / "good.png").read_bytes()
    (tmp_path / "in" / "cut.png").write_bytes(whole[: len(whole) // 2])
    argv = ["predict", "--ckpt_path", last(trained), "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    said = fail(monkeypatch, capsys, argv)
    assert "cut.png" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


@pytest.mark.parametrize("damage", ["absent", "empty", "unwritable"])
def test_predict_fails_with_one_message(
    damage: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "photos", tmp_path / "out"
    if damage != "absent":
        images.mkdir()
    if damage == "unwritable":
        Image.new("RGB", (8, 8)).save(images / "a.png")
        out.write_text("a file, not a folder")
    argv = ["predict", "--ckpt_path", last(trained), "--input", str(images), "--output", str(out)]
    assert str(out if damage == "unwritable" else images) in fail(monkeypatch, capsys, argv)
