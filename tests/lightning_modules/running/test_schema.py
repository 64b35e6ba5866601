"""The schema of configs: all of ours are valid by it, and mistakes are not."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_modules.cli import COMMANDS
from lightning_modules.config import CONFIGS

jsonschema: Any = pytest.importorskip("jsonschema")
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ("sweeps", "weights"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("schema") / "diffsr.schema.json"
    COMMANDS["schema"].run(["--out", str(out)])
    content = json.loads(out.read_text())
    jsonschema.Draft202012Validator.check_schema(content)
    return jsonschema.Draft202012Validator(content)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_is_valid(path: Path, written: Any) -> None:
    written.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "mistake",
    [
        {"trainer": {"max_step": 3}},
        {"trainer": {"max_steps": "three"}},
        {"trainer": {"callbacks+": [{"class_path": "callbacks.ema.EMA", "init_args": {"decya": 0.9}}]}},
        {"model": {"class_path": "lightning_modules.sr3.SR3", "init_args": {"samplr": None}}},
        {"model": {"class_path": "lightning_modules.sr3.SR4"}},
        {"data": {"class_path": "datamodules.folder.Folder", "init_args": {"crop": "large"}}},
        {"compose": "base.yaml"},
        {"modle": {}},
    ],
    ids=str,
)
def test_mistakes_are_marked(mistake: dict[str, Any], written: Any) -> None:
    assert list(written.iter_errors(mistake))


def test_references_additions_and_classes_of_others_are_allowed(written: Any) -> None:
    written.validate(
        {
            "trainer": {"max_steps": "${data.init_args.crop}", "callbacks+": [{"class_path": "mine.Own"}]},
            "model": {"class_path": "mine.Method", "init_args": {"anything": 1}},
            "data": {"init_args": {"crop": 64}},
        }
    )
