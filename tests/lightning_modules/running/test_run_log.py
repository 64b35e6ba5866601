"""The run's folder and its table of metrics."""

import csv
import subprocess
import sys
from pathlib import Path
from threading import Barrier, Thread

import pytest

from lightning_modules.running.run_log import RunLog


def lines(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder: Path, version: str = "run") -> RunLog:
    return RunLog(str(folder), "mine", version)


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    barrier, versions = Barrier(16), []

    def start() -> None:
        barrier.wait()
        versions.append(RunLog(str(tmp_path), "mine").version)

    threads = [Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(16))


def test_what_is_logged_of_a_step_is_one_line(tmp_path: Path) -> None:
    logger = log(tmp_path)
    logger.log_metrics({"lr": 0.1}, 0)
    logger.save()
    logger.log_metrics({"loss": 2.0}, 0)
    logger.save()
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_metrics({"psnr": 30.0, "loss": 1.5}, 1)
    logger.finalize("success")
    assert lines(tmp_path / "mine" / "run") == [
        {"loss": "2.0", "lr": "0.1", "psnr": "", "step": "0"},
        {"loss": "1.5", "lr": "", "psnr": "30.0", "step": "1"},
    ]


def test_a_resumed_run_goes_on_in_its_table(tmp_path: Path) -> None:
    first = log(tmp_path)
    for step in range(5):
        first.log_metrics({"loss": float(step), "psnr": 20.0 + step} if step == 2 else {"loss": float(step)}, step)
        first.save()
    table = tmp_path / "mine" / "run" / "metrics.csv"
    table.write_text(table.read_text() + "7.0,2")  # a kill in the middle of a line
    assert first._lock is not None
    first._lock.close()

    second = log(tmp_path)
    second.keep_until(2)
    second.log_metrics({"psnr": 22.5}, 2)  # its validation is repeated
    second.log_metrics({"loss": 9.0, "new": 1.0}, 3)
    second.save()
    assert lines(tmp_path / "mine" / "run") == [
        {"loss": "0.0", "new": "", "psnr": "", "step": "0"},
        {"loss": "1.0", "new": "", "psnr": "", "step": "1"},
        {"loss": "2.0", "new": "", "psnr": "22.5", "step": "2"},
        {"loss": "9.0", "new": "1.0", "psnr": "", "step": "3"},
    ]


HOLDER = """
import fcntl, sys
lock = open(sys.argv[1], "a+")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("process 7 on another machine", file=lock, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_no_two_processes_train_in_one_folder(tmp_path: Path) -> None:
    run = tmp_path / "mine" / "run"
    run.mkdir(parents=True)
    command = [sys.executable, "-c", HOLDER, str(run / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="process 7 on another machine is training there; wait until it ends"):
            _ = log(tmp_path).experiment
        holder.kill()
    assert log(tmp_path).experiment is not None


def test_unfinished_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt.part").touch()
    (folder / "last.ckpt").touch()
    assert log(tmp_path).experiment is not None
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


def test_a_folder_that_holds_something_stays(tmp_path: Path) -> None:
    empty, full = log(tmp_path, "empty"), log(tmp_path, "full")
    assert empty.experiment is not None and full.experiment is not None
    (tmp_path / "mine" / "full" / "kept").touch()
    empty.give_up()
    full.give_up()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["full"]


@pytest.mark.parametrize("step", [0, 3])
def test_a_table_of_no_use_begins_anew(step: int, tmp_path: Path) -> None:
    (tmp_path / "mine" / "run").mkdir(parents=True)
    (tmp_path / "mine" / "run" / "metrics.csv").write_text("loss,step\n0.5,7\n")
    logger = log(tmp_path)
    logger.keep_until(step)
    logger.log_metrics({"psnr": 1.0}, 0)
    logger.save()
    assert lines(tmp_path / "mine" / "run") == [{"psnr": "1.0", "step": "0"}]
