"""`lightning sweep-samplers`: a matrix of samplers and steps."""

import os
from pathlib import Path

import pytest
import yaml
from PIL import Image
from skimage.data import astronaut, cat

from lightning_modules.checkpoint import write_checkpoint
from lightning_modules.config import configured_model
from lightning_modules.config_errors import ConfigError
from lightning_modules.config_files import CONFIGS
from lightning_modules.evaluation.results import read_results
from lightning_modules.evaluation.sweep import main, named_checkpoints
from tests.tiny.experiments import tiny_overlays


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Data of two small images, and where results go."""
    (tmp_path / "small").mkdir()
    for index, photo in enumerate((astronaut, cat)):
        Image.fromarray(photo()[100:164, 100:164]).save(tmp_path / "small" / f"{index}.png")
    data = ["--data", "datamodules.folder.Folder", "--data.init_args.test", str(tmp_path / "small")]
    quick = ["--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu"]
    return ["--out", str(tmp_path / "out"), "--images", "1", *data, *quick]


def test_possible_pairs_are_tested_and_impossible_ones_listed(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(os.environ["DIFFSR_TINY"]) / "sr3_cosine.ckpt"
    sweep = [f"mine={checkpoint}", "--samplers", "ddim,relay_heun", "--steps", "2,4", *options]
    main(sweep)
    out = capsys.readouterr().out
    assert "mine, relay_heun-2 cannot be: RelayHeun continues a RelayProcess, not" in out
    page = (tmp_path / "out" / "compare.md").read_text()
    assert "Note: mine, relay_heun-4 cannot be" in page
    for steps in (2, 4):
        results = read_results(tmp_path / "out" / "tests" / f"mine_ddim-{steps}")
        assert results.content["cost"]["evaluations"] == steps
        assert f"| mine, ddim-{steps} |" in page
    assert (tmp_path / "out" / "quality_against_time.png").is_file()

    # A second time nothing is tested; with another number of steps that alone is.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tests").glob("*/results.json")}
    main([each if each != "2,4" else "2,4,5" for each in sweep])
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "tests").glob("*/results.json")}
    assert len(before) == 2 and len(after) == 3 and before.items() < after.items()


def test_what_cannot_be_swept_is_one_error(options: list[str], tmp_path: Path) -> None:
    checkpoint = str(Path(os.environ["DIFFSR_TINY"]) / "sr3_cosine.ckpt")
    with pytest.raises(ConfigError, match=r"--samplers euler: there are ancestral, ddim, "):
        main([checkpoint, "--samplers", "ddim,euler", *options])
    with pytest.raises(ConfigError, match=r"(?s)none of these pairs can be:.*sr3_cosine, relay_heun-2 cannot be"):
        main([checkpoint, "--samplers", "relay_heun", "--steps", "2", *options])

    config = tmp_path / "rrdb.yaml"
    composed = [str(path) for path in (CONFIGS / "rrdb.yaml", *tiny_overlays(CONFIGS / "rrdb.yaml"))]
    config.write_text(yaml.safe_dump({"compose": composed}))
    write_checkpoint(*configured_model(config), tmp_path / "rrdb.ckpt")
    with pytest.raises(ConfigError, match=r"rrdb\.ckpt: holds a RRDBRegressor, which takes no sampler"):
        main([str(tmp_path / "rrdb.ckpt"), *options])


def test_checkpoints_are_named_after_their_experiment() -> None:
    named = named_checkpoints(["runs/srdiff/version_3/checkpoints/last.ckpt", "other.ckpt", "x=third.ckpt"])
    assert list(named) == ["srdiff", "other", "x"]
    with pytest.raises(ConfigError, match="are both called 'srdiff'"):
        named_checkpoints(["runs/srdiff/version_3/checkpoints/last.ckpt", "srdiff.ckpt"])
