"""The reference tensors in tests/goldens, through the command that checks any folder of them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parity.__main__ import main
from tests.parity.harness import Comparison, Fixture, checks, fixtures, load, verdict

GOLDENS = Path(__file__).resolve().parents[1] / "goldens"
FIXTURES = fixtures(GOLDENS)


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
    assert done.returncode == 1 and done.stderr.startswith("error: no fixture")


def test_the_command_goes_through_folders_of_kinds_and_past_half_a_fixture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity", str(tmp_path)])
    for kind in ("schedules", "yoda"):
        (tmp_path / kind).mkdir()
    for name in ("schedules/schedule_jsd_T50", "yoda/yoda_masks"):
        for suffix in (".json", ".safetensors"):
            shutil.copy(GOLDENS / f"{name}{suffix}", tmp_path / f"{name}{suffix}")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and capsys.readouterr().out.endswith("2 of 2 fixtures pass\n")

    (tmp_path / "schedules/schedule_jsd_T50.json").unlink()
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and printed.endswith("1 of 2 fixtures pass\n")
    assert "schedule_jsd_T50.json: missing" in printed
