"""The examples of CONTRIBUTING.md run as they stand."""

import csv
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_modules.config_files import CONFIGS
from lightning_modules.running.experiment import run
from tests.tiny.experiments import arguments

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SECTION = re.compile(r"^### (.+?)\n.*?^```python\n(.*?)^```.*?^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = {title: (code, config) for title, code, config in SECTION.findall(TEXT)}
LEFT_BEHIND = {
    "A score": "val/worst_pixel",
    "A callback": "train/gradient_norm",
    "An attention map": "train/active_fraction",
}


def test_there_is_an_example_of_each_kind() -> None:
    assert list(EXAMPLES) == ["A method", "A sampler", "An attention map", "A score", "A data set", "A callback"]


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_trains_and_validates(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, config = EXAMPLES[title]
    name = code.splitlines()[0].removeprefix("# ")
    (tmp_path / name).write_text(code)
    (tmp_path / "my.yaml").write_text(config)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 80, 72, 3), dtype=np.uint8)
    for split, image in zip(("train", "val"), pixels, strict=True):
        (tmp_path / "photographs" / split).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "photographs" / split / "noise.png")

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        trained = run(["fit", *arguments(CONFIGS / "sr3.yaml"), "--config", "my.yaml"])
    finally:
        sys.modules.pop(Path(name).stem, None)
    assert trained.trainer.global_step == 2

    parts = [trained.model, trained.model.sampler, trained.model.region, trained.datamodule]
    objects = [*parts, *trained.trainer.callbacks]
    made = {f"{type(part).__module__}.{type(part).__name__}" for part in objects}
    if title in LEFT_BEHIND:
        metrics = next(Path("runs").rglob("metrics.csv"))
        with metrics.open() as file:
            columns = next(csv.reader(file))
        assert any(column.startswith(LEFT_BEHIND[title]) for column in columns), columns
    else:
        assert any(name.startswith(Path(code.splitlines()[0].removeprefix("# ")).stem) for name in made), made
