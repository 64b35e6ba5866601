"""The folder of a run and the table in it: one line a step, which a resumed run adds to."""

import csv
import fcntl
import io
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from lightning_modules.whole_file import remove_unfinished, whole_file

LOCK = ".lock"


class RunLog(CSVLogger):
    """Makes a run's folder, `<save_dir>/<name>/<version>`, and writes what is logged to `metrics.csv` in it.

    A new run gets a folder of its own also if another is started in the same moment. A run that goes on, see
    `go_on_in`, keeps its folder and its table. What is logged of one step stands in one line.

    Args:
        save_dir: Folder of all experiments.
        name: The experiment.
        version: The run's folder, instead of the next free `version_<n>`.
    """

    def __init__(self, save_dir: str, name: str, version: int | str | None = None) -> None:
        super().__init__(save_dir, name, version)
        self._lock: io.TextIOWrapper | None = None

    def go_on_in(self, version: str) -> None:
        """Takes the folder `version` instead of a new one; what it holds stays."""
        self._version = version

    @property
    def version(self) -> int | str:
        """The name of the run's folder; an int n stands for `version_<n>`."""
        if self._version is None:
            self._version = self._new_folder() if is_first() else self._get_next_version()
        return self._version

    def _new_folder(self) -> int:
        version = self._get_next_version()
        Path(self.root_dir).mkdir(parents=True, exist_ok=True)
        while True:
            try:
                (Path(self.root_dir) / f"version_{version}").mkdir()
            except FileExistsError:  # of a run that was started in the same moment
                version += 1
            else:
                return version

    @property
    def experiment(self) -> Any:
        """The table; on the first process alone, which also locks the folder against other runs.

        Raises:
            ValueError: another process is training in this folder.
        """
        if is_first() and self._experiment is None:
            folder = Path(self.log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
            remove_unfinished(folder)
            self._experiment = _Table(str(folder))
        return super().experiment

    def keep_until(self, step: int) -> None:
        """Drops the lines of later steps, which the run is about to repeat."""
        if is_first():
            cast(_Table, self.experiment).keep_until(step)

    def give_up(self) -> None:
        """Removes the folder of a run that did not begin, unless something lies in it."""
        if self._experiment is None:
            return
        folder = Path(self.log_dir)
        if self._lock is not None:
            self._lock.close()
        if {path.name for path in folder.iterdir()} == {LOCK}:
            (folder / LOCK).unlink()
        with suppress(OSError):  # it holds something
            folder.rmdir()
            folder.parent.rmdir()


class _Table(ExperimentWriter):
    """The lines of `metrics.csv`; the last one can still grow."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.path = Path(self.metrics_file_path)
        self._line: dict[str, Any] = {}
        self._start = 0  # of the last line in the file
        if self.path.is_file():
            with self.path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])
            self._start = self.path.stat().st_size

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the table of a folder that is used again; here the run goes on with it."""

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Adds to the line of a step, which the next step's ends."""
        if self._line.get("step") != step:
            self.save()
            self._line = {"step": step}
            self._start = self.path.stat().st_size if self.path.is_file() else 0
        self._line |= {
            name: value.item() if isinstance(value, Tensor) else value for name, value in metrics_dict.items()
        }
        self.metrics = [self._line]

    def save(self) -> None:
        """Brings the last line to the file."""
        if not self._line:
            return
        if not self._line.keys() <= set(self.metrics_keys):  # a new column
            before = self._lines(self._start)
            self.metrics_keys = sorted({*self.metrics_keys, *self._line})
            self._rewrite(before)
        content = self._text([self._line])
        with self.path.open("r+b") as file:
            os.pwrite(file.fileno(), content, self._start)  # at once, so that a kill leaves the old line or the new one
            file.truncate(self._start + len(content))

    def keep_until(self, step: int) -> None:
        """Drops the lines after a step, and the one that a kill left half."""
        kept = [line for line in self._lines() if line["step"].isdigit() and int(line["step"]) <= step]
        self._line = {}
        if not kept:
            self.path.unlink(missing_ok=True)
            self.metrics_keys, self._start = [], 0
            return
        last = kept.pop()
        self._rewrite(kept)
        self._line = {name: value for name, value in last.items() if value != ""} | {"step": int(last["step"])}
        self.save()

    def _lines(self, end: int | None = None) -> list[dict[str, str]]:
        """The complete lines of the file, up to the byte `end`."""
        if not self.path.is_file():
            return []
        text = self.path.read_bytes()[:end].decode()
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
        return [line for line in lines if None not in line and None not in line.values()]

    def _rewrite(self, lines: list[dict[str, str]]) -> None:
        with whole_file(self.path) as part:
            part.write_bytes(self._text([dict(zip(self.metrics_keys, self.metrics_keys, strict=True)), *lines]))
        self._start = self.path.stat().st_size

    def _text(self, lines: list[dict[str, Any]]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.metrics_keys).writerows(lines)
        return text.getvalue().encode()


def is_first() -> bool:
    """Whether this is the first of all processes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _locked(folder: Path) -> io.TextIOWrapper:
    """The lock of a run's folder; it ends with this process.

    Raises:
        ValueError: another process holds it.
    """
    lock = (folder / LOCK).open("a+")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not `flock`, which data workers would inherit
    except BlockingIOError:
        lock.seek(0)
        raise ValueError(
            f"{folder}: {lock.read().strip() or 'another process'} is training there; wait until it ends, or begin a "
            "run of its own: without --ckpt_path last"
        ) from None
    except OSError as error:
        rank_zero_warn(f"{folder}: cannot be locked on this file system ({error}); start no second run in it")

    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    lock.flush()
    return lock
