"""`lightning doctor`: examines sets before a long run.

    lightning doctor data/div2k --crop 160 --scale 4 --ranks 8
    lightning doctor DIV2K_train_HR --against Set5 Set14 Urban100

It compares shards with what was packed and with the processes that will read them, image sizes with the crop, and HR
with LR (shifts below a pixel). It looks for unusual modes and transparency, and for copies within and between sets.
Each finding comes with what to do. It exits with 1 if something is wrong; otherwise it ends with the command that
trains on the set. Copies of whole images cannot be found in sub-images: to look for test images, examine the folder
that was packed. Without a set, `lightning doctor` examines the machine.
"""

import argparse
import hashlib
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.progress import track

from datamodules.images import find_images, stored_mode
from datamodules.prepare.similarity import displacement, near_duplicates, perceptual_hash
from datamodules.stream.remote import is_remote
from datamodules.stream.shards import ShardSource, expand_braces, list_splits, open_split
from datamodules.stream.sources import BadSample, FileSource, Source

_MAX_SHIFT = 0.3  # LR pixels
_SUB_IMAGE = re.compile(r"_s\d{3,}$")  # what the packer adds to the keys of sub-images
_SHOWN = 10  # unreadable samples, and copies between two sets, that are listed


@dataclass(frozen=True)
class Findings:
    """What one sample looks like; `error` is why it could not be read, and the rest is empty then."""

    key: str
    error: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    lr_size: tuple[int, int] | None = None
    shift: float = 0.0
    code: int | None = None  # perceptual hash


@dataclass(frozen=True)
class Remark:
    """One line of the report."""

    serious: bool
    text: str

    def __str__(self) -> str:
        return f"{'PROBLEM' if self.serious else 'note'}: {self.text}"


def open_sets(where: str) -> dict[str, Source]:
    """The sets at one location, by label.

    Args:
        where: a folder or URL of packed sets, a folder of tars, a folder of images, an image, or tars named with braces
            or a glob.

    Raises:
        FileNotFoundError: there is nothing.
    """
    if not is_remote(where):
        where = os.path.expanduser(where)
    path = Path(where)
    if ".tar" in where and not path.is_dir():
        named = sorted(str(file) for file in path.parent.glob(path.name)) if "*" in where else expand_braces(where)
        return {where: ShardSource(named, path.name.partition("-")[0])}

    if is_remote(where) or (path / "dataset.json").is_file():
        root = where.rstrip("/")
        return {f"{root}/{wanted}": open_split(root, wanted) for wanted in list_splits(root)}

    shards = sorted(path.glob("*.tar")) if path.is_dir() else []
    if shards:
        return {where: ShardSource([str(shard) for shard in shards], path.name)}
    return {where: FileSource("", path if path.is_dir() else path.parent, find_images(path))}


def examine(source: Source, index: int) -> Findings:
    """Reads one sample and measures it."""
    try:
        record = source.record(index)
        sample = source.sample(index, paired=record.lr is not None)
    except BadSample as error:
        return Findings(source.describe(index), error=str(error))

    return Findings(
        record.key,
        mode=stored_mode(record.hr),
        size=(sample.hr.shape[1], sample.hr.shape[0]),
        lr_size=None if sample.lr is None else (sample.lr.shape[1], sample.lr.shape[0]),
        shift=0.0 if sample.lr is None else displacement(sample.hr, sample.lr),
        code=perceptual_hash(sample.hr),
    )


def remarks(source: Source, findings: Sequence[Findings], crop: int, scale: int, processes: int) -> Iterator[Remark]:
    """What is worth saying about one set."""
    if len(source) < processes:
        yield Remark(False, f"{len(source)} samples for {processes} processes: some have nothing to validate")
    if isinstance(source, ShardSource):
        yield from _about_shards(source, processes)

    # What a damaged shard lacks has been said once, of the shard.
    damaged = tuple(f"{text.partition(': ')[0]} " for text in source.damage())
    errors = [finding.error for finding in findings if finding.error and not finding.error.startswith(damaged)]
    for error in errors[:_SHOWN]:
        yield Remark(True, f"{error}: repair or repack it")
    if len(errors) > _SHOWN:
        yield Remark(True, f"and {len(errors) - _SHOWN} more samples that cannot be read")

    readable = [finding for finding in findings if not finding.error]
    yield from _about_images(readable, crop)
    yield from _about_pairs(readable, scale)
    yield from _about_copies(findings)


def _about_shards(source: ShardSource, processes: int) -> Iterator[Remark]:
    if len(source.urls) < processes:
        text = f"{len(source.urls)} shards for {processes} processes: every sample is still seen once an epoch, but "
        yield Remark(False, text + "processes read the same shards; pack with a smaller --per_shard if they are remote")

    damage = source.damage()
    yield from (Remark(True, text) for text in damage)
    for shard, url in enumerate(source.urls):
        damaged = any(text.startswith(f"{url}: ") for text in damage)
        if damaged or source.digests[shard] is None:
            continue
        with source.local(shard) as path:
            same = source.digests[shard] == _digest(path)
        if not same:
            yield Remark(True, f"{url}: its bytes are not those that were packed: copy, fetch or pack it again")


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _about_images(findings: Sequence[Findings], crop: int) -> Iterator[Remark]:
    small = [finding.key for finding in findings if min(finding.size) < crop]
    if small:
        remedy = f"lower `crop`, or pack with --crop {crop} --leave_out true"
        yield Remark(True, f"{_samples_are(small)} below the crop of {crop}: {remedy}")
    for mode, count in Counter(finding.mode for finding in findings).items():
        if mode != "RGB":
            yield Remark("transparency" in mode, f"{count} images are {mode}: they are read as 8-bit RGB on white")


def _about_pairs(findings: Sequence[Findings], scale: int) -> Iterator[Remark]:
    paired = [finding for finding in findings if finding.lr_size is not None]
    if paired and len(paired) < len(findings):
        yield Remark(True, f"{len(findings) - len(paired)} of {len(findings)} samples have no LR partner: repack")

    for finding in paired:
        if finding.lr_size != (finding.size[0] // scale, finding.size[1] // scale):
            text = f"{finding.key}: HR {finding.size} and LR {finding.lr_size} are no pair at scale {scale}"
            yield Remark(True, f"{text}: take it out")

    shifted = [finding.key for finding in paired if finding.shift > _MAX_SHIFT]
    if shifted:
        yield Remark(
            True, f"{_samples_are(shifted)} shifted by more than {_MAX_SHIFT} LR pixels: align the pairs again"
        )


def _about_copies(findings: Sequence[Findings]) -> Iterator[Remark]:
    """Copies within a set, except neighbouring sub-images of one image, which naturally look alike."""
    duplicates = near_duplicates([finding.code for finding in findings])
    pairs = [(findings[one].key, findings[other].key) for one, other in duplicates]
    pairs = [(one, other) for one, other in pairs if _SUB_IMAGE.sub("", one) != _SUB_IMAGE.sub("", other)]
    if pairs:
        shown = ", ".join(f"{one} and {other}" for one, other in pairs[:5]) + (", ..." if len(pairs) > 5 else "")
        yield Remark(False, f"{len(pairs)} pairs of images look the same ({shown}): keep one of each")


def _samples_are(keys: Sequence[str]) -> str:
    return f"{len(keys)} samples ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''}) are"


def compare(found: Mapping[str, Sequence[Findings]]) -> Iterator[Remark]:
    """What is worth saying about each two of several sets."""
    for one, other in combinations(found, 2):
        if _has_sub_images(found[one]) != _has_sub_images(found[other]):
            yield Remark(False, f"{one} and {other}: sub-images do not look like whole ones; compare what was packed")

        common = list(_common_images(found[one], found[other]))
        for first, second in common[:_SHOWN]:
            yield Remark(True, f"{first} of {one} and {second} of {other} look the same: take it out of one of them")
        if len(common) > _SHOWN:
            yield Remark(True, f"and {len(common) - _SHOWN} more that {one} and {other} have in common")


def _has_sub_images(findings: Sequence[Findings]) -> bool:
    return any(_SUB_IMAGE.search(finding.key) for finding in findings)


def _common_images(one: Sequence[Findings], other: Sequence[Findings]) -> Iterator[tuple[str, str]]:
    """Keys of images that two sets have in common."""
    both = [*one, *other]
    for first, second in near_duplicates([finding.code for finding in both]):
        if first < len(one) <= second:
            yield both[first].key, both[second].key


def examine_all(source: Source, label: str, processes: int) -> list[Findings]:
    """Reads every sample of a set, in `processes` processes."""
    examine_one = partial(examine, source)
    if processes == 1:
        return list(track(map(examine_one, range(len(source))), label, len(source), transient=True))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        results = pool.map(examine_one, range(len(source)), chunksize=16)
        return list(track(results, label, len(source), transient=True))


def report(options: argparse.Namespace) -> bool:
    """Prints what was found; returns whether something is wrong.

    Raises:
        FileNotFoundError: a set does not exist.
    """
    trained = {label: source for where in options.sets for label, source in open_sets(where).items()}
    sources = trained | {label: source for where in options.against for label, source in open_sets(where).items()}
    found = {label: examine_all(source, f"reading {label}", options.jobs) for label, source in sources.items()}

    processes = options.ranks * max(options.workers, 1)
    serious = False
    for label, source in trained.items():
        lines = list(remarks(source, found[label], options.crop, options.scale, processes))
        print(f"{label}: {len(source)} samples, {len(lines)} remarks", *lines, sep="\n  ")
        serious = serious or any(line.serious for line in lines)

    lines = list(compare(found))
    print(*lines, sep="\n", end="\n" if lines else "")
    serious = serious or any(line.serious for line in lines)
    for where in options.sets:
        command = None if serious else training_command(where, options)
        if command:
            print("ready: type this", f"  {command}", sep="\n")
    return serious


def training_command(where: str, options: argparse.Namespace) -> str | None:
    """The command that trains a first model on a set, in minutes; None for a set that nothing is trained on.

    Args:
        where: the set, as `open_sets` takes it.
        options: of the command; what differs from its defaults becomes an option of the training.
    """
    sources = open_sets(where)
    packed = is_remote(where) or (Path(where).expanduser() / "dataset.json").is_file()
    given = {"scale": (options.scale, 4), "crop": (options.crop, 160), "num_workers": (options.workers, 4)}
    chosen = {name: str(value) for name, (value, default) in given.items() if value != default}
    if packed:
        names = [label.rpartition("/")[2] for label in sources]
        training = [name for name in names if name.endswith("-train")]
        if not training:
            return None
        chosen["root"] = where.rstrip("/")
        if len(training) > 1:
            chosen["train"] = "+".join(training)
        validation = [name for name in names if name.endswith("-val")]
        if len(validation) > 1:
            chosen["val"] = "+".join(validation)
        sources = {label: source for label, source in sources.items() if label.endswith("-train")}
    elif ".tar" in where or any(isinstance(source, ShardSource) for source in sources.values()):
        return None  # tars without a description: their names and braces are the user's to choose
    else:
        chosen["train"] = where
    if all(source.record(0).lr is not None for source in sources.values()):
        chosen["paired"] = "true"

    configs = ["configs/quickstart.yaml", f"configs/data/{'packed' if packed else 'folder'}.yaml"]
    configs += ["configs/hardware/gpu1.yaml"] if torch.cuda.is_available() else []
    words = ["lightning", "fit", *(word for config in configs for word in ("--config", config))]
    words += [word for name, value in chosen.items() for word in (f"--data.init_args.{name}", value)]
    return shlex.join(words)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lightning doctor", description=__doc__, formatter_class=layout)
    parser.add_argument("sets", nargs="+", help="folders (or URLs) of packed sets, folders of images, or 'x-*.tar'")
    parser.add_argument("--against", nargs="+", default=[], help="test sets, which must share no image with the others")
    parser.add_argument("--crop", type=int, default=160, help="side of the training patches (160)")
    parser.add_argument("--scale", type=int, default=4, help="HR size over LR size, for pairs (4)")
    parser.add_argument("--ranks", type=int, default=1, help="processes that will train (1)")
    parser.add_argument("--workers", type=int, default=4, help="loading processes of each (4)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes the doctor itself uses")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the report; exits with 1 if something is wrong.

    Args:
        arguments: what follows `lightning doctor`; those of the process by default.
    """
    try:
        serious = report(parse(arguments))
    except OSError as error:
        sys.exit(f"error: {error}")
    if serious:
        sys.exit(1)
