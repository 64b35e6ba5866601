"""What is said of a data worker that ended."""

import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from datamodules.stream.crops import RandomCrop
from datamodules.stream.loader import Loader, explain
from datamodules.stream.sources import DataError, FileSource, Sample
from datamodules.stream.streams import TrainStream


class Dying(FileSource):
    """Its worker gets a signal when the fourth image is read."""

    number = signal.SIGKILL

    def sample(self, index: int, paired: bool) -> Sample:
        if index == 3:
            os.kill(os.getpid(), self.number)
        return super().sample(index, paired)


def loader(folder: Path, number: int) -> Loader:
    files = [folder / f"{index}.png" for index in range(4)]
    for file in files:
        Image.new("RGB", (16, 16)).save(file)
    source = Dying("set", folder, files)
    source.number = signal.Signals(number)
    return Loader(TrainStream(source, RandomCrop(8, 2, 0), batch_size=2, seed=0), workers=1)


def test_a_killed_worker_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"DataLoader worker \(pid.* memory was probably full .*num_workers"):
        for _ in zip(range(9), loader(tmp_path, signal.SIGKILL), strict=False):
            pass


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_a_signal_that_is_meant_for_the_run_does_not_end_a_worker(number: int, tmp_path: Path) -> None:
    assert len(list(zip(range(9), loader(tmp_path, number), strict=False))) == 9


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible ...", "--shm-size"),
        ("unable to write to file </torch_12_3>: No space left on device (28) shm_open", "--shm-size"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "num_workers"),
        ("received 0 items of ancdata: Too many open files", "ulimit -n"),
    ],
)
def test_each_end_has_its_hint(message: str, hint: str) -> None:
    assert hint in str(explain(message))


def test_other_errors_stay_as_they_are() -> None:
    assert explain("mat1 and mat2 shapes cannot be multiplied") is None
