"""The reference tensors in tests/goldens, through the command that checks any folder of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity.harness import Comparison, Fixture, checks, load, verdict

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
FIXTURES = sorted(path.with_suffix(".safetensors") for path in GOLDENS.rglob("*.json"))


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_reference_tensors_are_reproduced(path: Path) -> None:
    line, passed = verdict(load(path), checks())
    assert passed, line


def test_an_unknown_kind_fails() -> None:
    unknown = Fixture("x", {}, {"kind": "nothing"}, {}, {}, {})
    line, passed = verdict(unknown, checks())
    assert not passed and "unknown kind: nothing" in line


def test_a_wrong_number_fails() -> None:
    fixture = load(FIXTURES[0])

    def wrong(fixture: Fixture) -> list[Comparison]:
        name, value = next(iter(fixture.outputs.items()))
        return [Comparison(name, value + 1, value, atol=1e-3)]

    line, passed = verdict(fixture, {fixture.config.get("kind", fixture.name): wrong})
    assert not passed and line.endswith("FAIL")


def test_the_command_exits_with_one_where_nothing_is_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.parity", str(tmp_path)]
    done = subprocess.run(command, cwd=GOLDENS.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no fixture" in done.stderr
