"""The command line: composition, precedence, errors in one message, prediction from a checkpoint alone."""

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_modules.checkpoint import write_checkpoint
from lightning_modules.cli import ConfigError, configured_model, expand, layers, main, run, take_option
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


def test_typed_options_come_after_the_files(tmp_path: Path) -> None:
    expanded = expand(["fit", "--trainer.max_steps", "3", "--config", str(CONFIGS / "srdiff_yoda.yaml")], tmp_path)
    files = [Path(value).name for flag, value in pairwise(expanded) if flag == "--config"]
    assert files[0] == "base.yaml" and files[-1] == "srdiff_yoda.yaml"
    assert expanded[-2:] == ["--trainer.max_steps", "3"]


def test_saved_config_runs_again_as_it_is(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["compose"] == [] and saved["experiment"] == "srdiff"
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
    ("option", "named"),
    [
        (["--model.init_args.smapler", "3"], "smapler"),
        (["--trainer.max_stepz", "3"], "max_stepz"),
        (["--model.init_args.process.class_path", "lightning_modules.diffusion.vp.Nothing"], "Nothing"),
    ],
)
def test_mistakes_are_named(
    option: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert named in fail(monkeypatch, capsys, ["fit", *arguments(SRDIFF), *option])


def test_help_says_what_to_type_next(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning", "--help"])
    main()
    said = capsys.readouterr().out
    assert "lightning fit --config configs/quickstart.yaml" in said and "lightning predict" in said


def test_console_script_exits_with_zero() -> None:
    script = Path(sys.executable).with_name("lightning")
    assert subprocess.run([script, "--help"], capture_output=True, check=True).stdout.startswith(b"lightning")


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
