"""What a training leaves and says; a checkpoint on several sets, with one table."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from lightning_modules.config import CONFIGS, read_command_line
from lightning_modules.config_errors import ConfigError
from lightning_modules.enlarging.command import main as enlarge
from lightning_modules.evaluation.results import read_results
from lightning_modules.evaluation.summary import table
from lightning_modules.running.experiment import run
from lightning_modules.running.on_sets import main, run_name, set_options, take_sets
from tests.datamodules.trees import save
from tests.tiny.experiments import arguments

SMALL = ["--trainer.max_steps", "3", "--trainer.val_check_interval", "1", "--checkpoint_every", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one run of three steps and a validation after each."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run(["fit", *arguments(CONFIGS / "quickstart.yaml"), *SMALL])
    return root


def test_the_best_checkpoint_stands_beside_the_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    checkpoints = folder / "runs/quickstart/version_0/checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    (best,) = [name for name in names if name.startswith("best-")]
    assert set(names) == {best, "last.ckpt", "step=2.ckpt"}

    rows = {}
    for step in (1, 2, 3):
        header, *lines = (checkpoints.parent / f"scores/val-step-{step:06d}.csv").read_text().splitlines()
        place = header.split(",").index("psnr_y")
        rows[step] = sum(float(line.split(",")[place]) for line in lines)
    assert best == f"best-step={max(rows, key=lambda step: rows[step])}.ckpt"
    line = read_command_line(["test", "--experiment", "quickstart", "--ckpt_path", "best"])
    assert line.options[-1].endswith(f"/{best}")


def test_what_a_training_says_to_type_next_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(
        [
            "fit",
            *arguments(CONFIGS / "quickstart.yaml"),
            "--trainer.max_steps",
            "1",
            "--trainer.val_check_interval",
            "1",
        ]
    )
    said = capsys.readouterr().out
    commands = {
        line.split()[0]: line[line.index("lightning ") :] for line in said.splitlines() if "  lightning " in line
    }
    metrics = tmp_path / "runs/quickstart/version_0/metrics.csv"
    before = len(metrics.read_text().splitlines())

    words = shlex.split(commands["go"])[1:]
    assert run(words).trainer.global_step == 2
    assert [path.name for path in tmp_path.glob("runs/*/version_*")] == ["version_0"]
    assert len(metrics.read_text().splitlines()) > before

    save(tmp_path / "photos" / "a.png", 0)
    assert enlarge(shlex.split(commands["enlarge"].replace("PHOTOS", "photos").replace("FOLDER", "out"))[2:]) == 0
    assert (tmp_path / "out/a.png").is_file()
    assert re.search(r"test --ckpt_path \S*best-step=1.ckpt --on set5 set14$", commands["test"])


def here(arguments: Sequence[str]) -> int:
    """Runs a command line in this process, which is quicker."""
    try:
        run(arguments)
    except ValueError:
        return 1
    return 0


def test_several_sets_have_one_table_and_a_failing_one_stops_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "broken").mkdir()
    (folder / "broken" / "a.png").write_bytes(b"no image")
    for number in range(3):
        save(folder / ("one" if number else "two") / f"{number}.png", number, 64, 64)
    last = "runs/quickstart/version_0/checkpoints/last.ckpt"
    code = main(["--ckpt_path", last, "--on", "one", "broken", "two", "--data.init_args.num_workers", "0"], here)
    root, said = folder / "runs/tests/quickstart-version_0-last", capfd.readouterr()
    assert code == 1 and "not tested on broken" in said.err
    assert (root / "one/version_0/images/sr/one/1.png").is_file()

    lines = (root / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| set", "| ---", "| one", "| two"]
    results = read_results(root / "two/version_0")
    assert f"{results.mean('psnr_y'):.3f} | {results.mean('psnr_y', 'bicubic'):.3f}" in lines[-1]
    assert str(root.relative_to(folder) / "table.md") in said.out


def test_names_of_sets_and_runs(tmp_path: Path) -> None:
    options = ["--on", "set5", "set14", "--seed_everything", "1", "--on", "set5"]
    assert take_sets(options) == ["set5", "set14"] and options == ["--seed_everything", "1"]
    with pytest.raises(ConfigError, match="--on: name the sets, such as --on set5 set14; there are b100,"):
        take_sets(["--on", "--seed_everything"])
    with pytest.raises(ConfigError, match="--on set6: is no set"):
        set_options("set6")
    assert set_options("set5") == ["--config", str(CONFIGS / "data/set5.yaml")]
    assert run_name(tmp_path / "runs/a/version_3/checkpoints/last.ckpt") == "a-version_3-last"
    assert run_name(Path("photo-x4.ckpt")) == "photo-x4"


def test_images_are_not_kept_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    save(folder / "three" / "a.png", 5, 64, 64)
    last = "runs/quickstart/version_0/checkpoints/last.ckpt"
    data = [
        "--data",
        "datamodules.folder.Folder",
        "--data.init_args.test",
        "three",
        "--data.init_args.num_workers",
        "0",
    ]
    tested = run(["test", "--ckpt_path", last, *data, "--save_images", "false", "--experiment", "three"])
    found = Path(str(tested.trainer.log_dir))
    assert (found / "results.json").is_file() and not (found / "images").exists()


def test_a_set_without_a_score_leaves_its_cells_empty_and_nan_is_said(folder: Path, tmp_path: Path) -> None:
    means = {"psnr_y": {"model": 30.0, "bicubic": 29.0}}
    content = {"format": 1, "means": means, "rows": [{"image": "a", "score": "psnr_y", "model": 30.0, "bicubic": 29.0}]}
    content |= {
        "definitions": {},
        "data": {},
        "method": {"name": "m", "sampler": "s", "config_sha256": "0"},
        "measured": {},
        "baseline": "bicubic",
    }
    (tmp_path / "results.json").write_text(json.dumps(content))
    other = {**content, "means": {**means, "niqe": {"model": 4.0, "bicubic": 5.0}}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    nan = {**content, "means": {"psnr_y": {"model": None, "bicubic": 29.0}}}
    nan["rows"] = [{"image": "a", "score": "psnr_y", "model": None, "bicubic": 29.0}]
    (tmp_path / "nan.json").write_text(json.dumps(nan))
    found = {name: read_results(tmp_path / f"{name}.json") for name in ("results", "other", "nan")}
    assert table(found).splitlines()[2:] == [
        "| results | 1 | 30.000 | 29.000 |  |  |  |",
        "| other | 1 | 30.000 | 29.000 | 4.000 | 5.000 |  |",
        "| nan | 1 | NaN | 29.000 |  |  |  |",
    ]
