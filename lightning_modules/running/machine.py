"""`lightning doctor` without a set: what this machine has."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path

import torch

from lightning_modules.config_files import CONFIGS, read_yaml
from lightning_modules.weight_files import folders

PACKAGES = ("torch", "lightning", "jsonargparse", "torchmetrics", "diffusers", "transformers")
EXTRAS = {"report": "matplotlib", "tensorboard": "tensorboard", "wandb": "wandb", "pyiqa": "pyiqa", "clip_iqa": "piq"}
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # as /proc/cpuinfo spells them
ENOUGH_DISK = 20e9  # bytes, for checkpoints and pictures of a few runs
ENOUGH_SHARED = 2e9  # bytes, for the batches of loading processes


def logged_in_to_wandb() -> bool:
    """Whether this machine holds a login of W&B."""
    try:
        return "WANDB_API_KEY" in os.environ or netrc().authenticators("api.wandb.ai") is not None
    except (OSError, NetrcParseError):
        return False


def available_memory() -> int:
    """The bytes of memory that programs can still take."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


Line = tuple[str, str]  # what was looked at, and what was found; "note" says what needs attention


def lines() -> Iterator[Line]:
    """Everything that was looked at."""
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield from _devices()
    yield from _processor()
    yield "memory", f"{available_memory() / 1e9:.1f} GB free"
    yield from _space("disk", Path.cwd(), ENOUGH_DISK, "checkpoints and pictures of a few runs")
    if Path("/dev/shm").is_dir():
        purpose = "batches of loading processes; --data.init_args.num_workers 0 does without"
        yield from _space("/dev/shm", Path("/dev/shm"), ENOUGH_SHARED, purpose)
    there = [name for name, module in EXTRAS.items() if find_spec(module)]
    lacking = [name for name in EXTRAS if name not in there]
    yield "extras", f"{', '.join(there) or 'none'}; not installed: {', '.join(lacking) or 'none'}"
    yield from _wandb()
    yield from _weights()
    yield from _data()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _devices() -> Iterator[Line]:
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            memory = f"{found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
            yield "device", f"cuda:{number} {found.name}, {memory}"
        fast = "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        yield "precision", f"--trainer.precision {fast} is fast here, 32-true exact"
    elif torch.backends.mps.is_available():
        yield "device", "mps (Apple's GPU)"
        yield "precision", "--trainer.precision 32-true"
    else:
        yield "device", "cpu alone: add --config configs/hardware/cpu.yaml to experiments that ask for a GPU"


def _processor() -> Iterator[Line]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kind = torch.backends.cpu.get_cpu_capability()
    yield "processor", f"{cores} cores for this process, {torch.get_num_threads()} threads, {kind}"
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:  # not Linux
        return
    yield "", ", ".join(f"{name} {'yes' if name in flags else 'no'}" for name in FEATURES)
    if not torch.cuda.is_available():
        gains = "is faster than" if flags & {"amx_bf16", "avx512_bf16"} else "gains nothing over"
        yield "precision", f"--trainer.precision bf16-mixed {gains} 32-true here"


def _space(what: str, folder: Path, enough: float, purpose: str) -> Iterator[Line]:
    free = shutil.disk_usage(folder).free
    yield what, f"{free / 1e9:.1f} GB free in {folder}"
    if free < enough:
        yield "note", f"{what}: less than {enough / 1e9:.0f} GB are free, which may be too little for {purpose}"


def _wandb() -> Iterator[Line]:
    if not find_spec("wandb"):
        yield "W&B", "not installed; configs/logger/wandb.yaml needs the package wandb"
        return
    mode = os.environ.get("WANDB_MODE")
    found = "logged in" if logged_in_to_wandb() else "not logged in: wandb login, or WANDB_MODE=offline"
    yield "W&B", f"{found}; WANDB_MODE is {mode}" if mode else found


def _weights() -> Iterator[Line]:
    for folder in folders():
        files = (
            sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".lock")
            if folder.is_dir()
            else []
        )
        yield "weights", f"{folder}: {', '.join(files) or 'none; see lightning weights'}"


def _data() -> Iterator[Line]:
    """The sets of configs/data that are here, seen from the current folder."""
    roots: dict[str, list[str]] = {}
    for path in sorted((CONFIGS / "data").glob("*.yaml")):
        root = ((read_yaml(path).get("data") or {}).get("init_args") or {}).get("root")
        if root:
            roots.setdefault(str(root), []).append(path.stem)
    for root, names in roots.items():
        found = "there" if Path(root).expanduser().is_dir() else "not there"
        yield "data", f"{root}: {found} ({', '.join(names)})"


def main() -> None:
    """Prints what was found."""
    print(f"lightning doctor: {sys.executable}", *(f"{what:12s}{found}" for what, found in lines()), sep="\n")
