"""More than a hundred malformed inputs: each ends in one message, a failing exit code, and nothing executed.

An input is made in an empty folder out of a good one of `Good`. What must be said is a regular expression. Where one of
several items is bad, `done` is what must have been made of the others.
"""

import io
import json
import os
import pickle
import re
import shutil
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_modules.cli import main
from lightning_modules.config import configured_model
from tests.datamodules.trees import picture, png, write_tar
from tests.lightning_modules.evaluation.made_up import numbers, results_file
from tests.tiny.experiments import CONFIGS, arguments
from tests.tiny.published import basicsr

SR3 = CONFIGS / "sr3.yaml"
EXECUTED = "executed"  # the file that a bomb writes


@dataclass(frozen=True)
class Good:
    """Inputs that work, from which the malformed ones are made.

    Attributes:
        checkpoint: Of a tiny SR3, with the state of its training.
        content: What that file holds.
        shards: A packed set `set-train` of six images in two shards, and `set-val` of two.
        published: A state dict of a tiny RRDB as Real-ESRGAN publishes it.
        rrdb: The config of that network.
    """

    checkpoint: Path
    content: Mapping[str, Any]
    shards: Path
    published: Mapping[str, torch.Tensor]
    rrdb: Path


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        make: Makes it in the current folder; returns what is typed after `lightning`.
        said: Regular expressions that the message must match.
        done: A file that must be there all the same.
    """

    make: Callable[[Good], list[str]]
    said: tuple[str, ...]
    done: str | None = None


class Bomb:
    """What executes code when it is unpickled: it makes a folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def bomb() -> bytes:
    """A pickle that makes the folder `EXECUTED` when it is loaded."""
    return pickle.dumps(Bomb(Path(EXECUTED).resolve()))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    """Made once."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lightning", "fit", *arguments(SR3), "--trainer.max_steps=1"])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0
    checkpoint = folder / "runs/sr3/version_0/checkpoints/last.ckpt"

    shards = folder / "packed"
    described = []
    for split, counts in (("train", (3, 3)), ("val", (2,))):
        listed, seed = [], 100 * len(described)
        for number, count in enumerate(counts):
            name = f"set-{split}-{number:06d}.tar"
            write_tar(
                shards / name, {f"{seed + each:04d}.hr.png": png(picture(seed + each, 64, 64)) for each in range(count)}
            )
            listed.append({"file": name, "samples": count, "bytes": (shards / name).stat().st_size})
            seed += count
        described.append({"name": "set", "split": split, "shards": listed})
    (shards / "dataset.json").write_text(json.dumps({"splits": described}))

    rrdb = folder / "tiny_rrdb.yaml"
    rrdb.write_text(yaml.safe_dump({"compose": [str(path) for path in arguments(CONFIGS / "realesrgan.yaml")[1::2]]}))
    model, _ = configured_model(rrdb)
    state = basicsr({key.removeprefix("network."): value for key, value in model.state_dict().items()})
    return Good(checkpoint, torch.load(checkpoint, weights_only=True), shards, state, rrdb)


# Configs.


def config(text: str | bytes, *options: str) -> Callable[[Good], list[str]]:
    """A config file of this text, laid over an experiment."""

    def make(good: Good) -> list[str]:
        Path("mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return ["fit", *arguments(SR3), "--config", "mine.yaml", *options]

    return make


def typed(*options: str) -> Callable[[Good], list[str]]:
    """An experiment with these options."""
    return lambda good: ["fit", *arguments(SR3), *options]


def composed(*texts: str) -> Callable[[Good], list[str]]:
    """Configs `0.yaml`, `1.yaml`, ..., of which the first is given."""

    def make(good: Good) -> list[str]:
        for number, text in enumerate(texts):
            Path(f"{number}.yaml").write_text(text)
        return ["fit", "--config", "0.yaml"]

    return make


SHELL = f"!!python/object/apply:os.mkdir [{EXECUTED}]"
CONFIG_CASES = {
    "config: not YAML": Case(config("model: [1, 2\n"), ("mine.yaml: is not valid YAML",)),
    "config: a tab": Case(config("model:\n\tinit_args: 1\n"), ("mine.yaml: is not valid YAML",)),
    "config: not text": Case(config(bytes(range(128, 256))), ("mine.yaml: is not valid YAML",)),
    "config: a pickle": Case(lambda good: config(bomb())(good), ("mine.yaml: is not valid YAML",)),
    "config: a list": Case(config("- model\n"), ("mine.yaml: must hold `key: value` lines",)),
    "config: a word": Case(config("model\n"), ("mine.yaml: must hold `key: value` lines",)),
    "config: a Python tag": Case(
        config(f"seed_everything: {SHELL}\n"), ("mine.yaml: is not valid YAML", "python/object")
    ),
    "config: a Python object": Case(
        config("model: !!python/name:os.system\n"), ("mine.yaml: is not valid YAML", "python/name")
    ),
    "config: a key twice": Case(
        config("trainer: {}\ntrainer: {}\n"), ("mine.yaml:2: the key 'trainer' is written twice",)
    ),
    "config: a list as a key": Case(config("? [a, b]\n: 3\n"), ("mine.yaml:1?", "key")),
    "config: an unknown key": Case(
        config("trainr: {}\n"), (r"mine.yaml:1: trainr: no such key; did you mean trainer\?",)
    ),
    "config: an unknown argument that is empty": Case(
        config("model:\n  init_args:\n    netwrk: {}\n"),
        (r"mine.yaml:3: model.init_args.netwrk: no such key .*did you mean network\?",),
    ),
    "config: an unknown argument": Case(
        config("model:\n  init_args:\n    norms: l1\n"),
        (r"mine.yaml:3: model.init_args.norms: no such key .*did you mean norm\?",),
    ),
    "config: a word for a number": Case(
        config("trainer:\n  max_steps: many\n"), ("mine.yaml:2: trainer.max_steps: expected int, got many",)
    ),
    "config: a mapping for a number": Case(
        config("data:\n  init_args:\n    crop: {a: 1}\n"), ("mine.yaml:3: data.init_args.crop: expected int, got",)
    ),
    "config: a number for a part": Case(
        config("model:\n  init_args:\n    network: 3\n"), ("model.init_args.network", "3")
    ),
    "config: a class that is none": Case(
        config("model:\n  class_path: lightning_modules.sr3.SR4\n"),
        (r"mine.yaml:\d: model.*SR4.*did you mean lightning_modules.sr3.SR3\?",),
    ),
    "config: a class of another kind": Case(
        config(f"model:\n  class_path: subprocess.Popen\n  init_args: {{args: [mkdir, {EXECUTED}]}}\n"),
        ("model", "Popen"),
    ),
    "config: a function as a callback": Case(
        config(f"trainer:\n  callbacks+:\n  - class_path: os.mkdir\n    init_args: {{path: {EXECUTED}}}\n"),
        ("trainer.callbacks", "os.mkdir"),
    ),
    "config: a function as an optimizer": Case(
        typed("--model.init_args.optimizer", "os.mkdir"), ("--model.init_args.optimizer", "os.mkdir", "Optimizer")
    ),
    "config: a function as a network": Case(
        typed("--model.init_args.network", "os.mkdir"), ("--model.init_args.network", "os.mkdir")
    ),
    "config: composes itself": Case(composed("compose: [0.yaml]\n"), ("0.yaml: composes itself",)),
    "config: composes itself by another": Case(
        composed("compose: [1.yaml]\n", "compose: [0.yaml]\n"), ("0.yaml: composes itself",)
    ),
    "config: composes a missing file": Case(composed("compose: [none.yaml]\n"), ("none.yaml: no such config file",)),
    "config: composes a folder": Case(composed("compose: [.]\n"), ("no such config file",)),
    "config: composes a number": Case(composed("compose: 3\n"), ("0.yaml", "compose", "list of")),
    "config: composes a mapping": Case(composed("compose: [{a: b}]\n"), ("0.yaml", "compose", "list of")),
    "config: composes one name": Case(composed("compose: 1.yaml\n", ""), ("0.yaml", "compose", "list of")),
    "config: is missing": Case(lambda good: ["fit", "--config", "none.yaml"], ("none.yaml: no such config file",)),
    "config: is empty": Case(composed(""), ("model",)),
    "config: refers to nothing": Case(
        config("data:\n  init_args:\n    root: ${nowhere}\n"), ("data.init_args.root: Interpolation key 'nowhere'",)
    ),
    "config: refers to itself": Case(config("experiment: ${experiment}\n"), ("experiment", "(?i)recurs|interpolation")),
    "config: an unfinished reference": Case(config('experiment: "${a"\n'), ("experiment",)),
    "config: a number out of range": Case(config("model:\n  init_args:\n    draws: 0\n"), ("draws", "at least 1")),
    "config: a crop that does not fit": Case(
        typed("--data.init_args.crop=30"), (r"crop: 30 is not a multiple of scale 4 \[--data.init_args.crop\]",)
    ),
    "config: a batch of no image": Case(typed("--data.init_args.batch_size=0"), ("batch_size", "at least 1")),
    "config: fewer than no workers": Case(typed("--data.init_args.num_workers=-1"), ("num_workers", "-1")),
    "config: a scale of nothing": Case(typed("--data.init_args.scale=0"), ("scale",)),
    "config: a seed that is none": Case(typed("--seed_everything=-5"), ("seed",)),
    "config: an option without a value": Case(typed("--ckpt_path="), ("--ckpt_path is empty",)),
    "config: a command that is none": Case(lambda good: ["train"], ("no command 'train'",)),
}


# Shards.


def shard(change: Callable[[Path], None], command: str = "doctor") -> Callable[[Good], list[str]]:
    """The packed set after a change; `doctor` looks at all of it, `fit` trains on it."""

    def make(good: Good) -> list[str]:
        shutil.copytree(good.shards, "packed")
        change(Path("packed"))
        if command == "doctor":
            return ["doctor", "packed", "--crop", "64", "--jobs", "1"]
        data = {"class_path": "datamodules.shard_folder.ShardFolder"}
        data |= {"init_args": {"root": "packed", "train": "set-train", "val": "set-val"}}
        Path("data.yaml").write_text(yaml.safe_dump({"data": data}))
        return ["fit", *arguments(SR3), "--config", "data.yaml", "--trainer.max_steps=4"]

    return make


def described(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of what `dataset.json` says, or of the whole text."""

    def make(folder: Path) -> None:
        content = json.loads((folder / "dataset.json").read_text())
        made = change(content)
        (folder / "dataset.json").write_bytes(made if isinstance(made, bytes) else json.dumps(content).encode())

    return make


def tar(name: str, members: Callable[[], list[tuple[str, bytes]]]) -> Callable[[Path], None]:
    """A shard with other members."""

    def make(folder: Path) -> None:
        write_tar(folder / name, members())
        described(
            lambda content: [shard.pop("bytes", None) for split in content["splits"] for shard in split["shards"]]
        )(folder)

    return make


def overwritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A file with other bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def compressed(content: bytes) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as file:
        info = tarfile.TarInfo("0000.hr.png")
        info.size = 0
        file.addfile(info, io.BytesIO())
    return made.getvalue()


def train(*others: tuple[str, bytes], numbers: tuple[int, ...] = (0, 1, 2)) -> list[tuple[str, bytes]]:
    """The members of the first training shard, as far as they stay, and others."""
    return [*((f"{number:04d}.hr.png", png(picture(number, 64, 64))) for number in numbers), *others]


def first_shards(content: dict[str, Any]) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = content["splits"][0]["shards"]
    return shards


FIRST = "set-train-000000.tar"
SECOND = "set-train-000001.tar"
VAL = "set-val-000000.tar"
SHARD_CASES = {
    "shards: a shard is missing": Case(
        shard(lambda folder: (folder / FIRST).unlink(), "fit"), (f"{FIRST}.*1 of 2 are missing", "lightning pack")
    ),
    "shards: a shard is a folder": Case(
        shard(lambda folder: [(folder / FIRST).unlink(), (folder / FIRST).mkdir()] and None, "fit"),
        (f"{FIRST}.*1 of 2 are missing",),
    ),
    "shards: no description": Case(shard(lambda folder: (folder / "dataset.json").unlink(), "fit"), ("dataset.json",)),
    "shards: a description cut off": Case(
        shard(described(lambda content: json.dumps(content).encode()[:40]), "fit"),
        ("dataset.json: is not the description of a packed set",),
    ),
    "shards: a description that is a pickle": Case(
        shard(described(lambda content: bomb()), "fit"), ("dataset.json: is not the description of a packed set",)
    ),
    "shards: a description without splits": Case(
        shard(described(lambda content: content.clear()), "fit"), ("dataset.json: is not the description", "splits")
    ),
    "shards: a description without counts": Case(
        shard(described(lambda content: first_shards(content)[0].pop("samples")), "fit"),
        ("dataset.json: is not the description", "samples"),
    ),
    "shards: a count that is a word": Case(
        shard(described(lambda content: first_shards(content)[0].update(samples="three")), "fit"),
        ("dataset.json: is not the description", "three"),
    ),
    "shards: a count below nothing": Case(
        shard(described(lambda content: first_shards(content)[0].update(samples=-3)), "fit"),
        ("dataset.json: is not the description", "-3"),
    ),
    "shards: no shard in the list": Case(
        shard(described(lambda content: first_shards(content).clear()), "fit"),
        ("set: no shard is given", "lightning pack"),
    ),
    "shards: a path out of the folder": Case(
        shard(described(lambda content: first_shards(content)[0].update(file="../../etc/passwd")), "fit"),
        ("dataset.json: is not the description", r"\.\./\.\./etc/passwd"),
    ),
    "shards: another set is asked for": Case(
        shard(described(lambda content: content["splits"].pop(0)), "fit"), ("holds no set 'set-train'", "set-val")
    ),
    "shards: a count that is too large": Case(
        shard(described(lambda content: first_shards(content)[0].update(samples=4))), (FIRST, "holds 3 of 4 samples")
    ),
    "shards: cut off in an image": Case(
        shard(overwritten(FIRST, lambda content: content[:5000])), (FIRST, "truncated", "pack it again")
    ),
    "shards: their last byte missing": Case(
        shard(overwritten(VAL, lambda content: content[:-1])), (VAL, "is 20479 bytes, not 20480 as it was packed")
    ),
    "shards: empty": Case(shard(overwritten(VAL, lambda content: b"")), (VAL, "holds 0 of 2 samples")),
    "shards: not a tar": Case(shard(overwritten(VAL, lambda content: b"x" * 20480)), (VAL, "not an uncompressed tar")),
    "shards: compressed": Case(shard(overwritten(VAL, compressed)), (VAL, "not an uncompressed tar")),
    "shards: a zip": Case(
        shard(overwritten(VAL, lambda content: b"PK\x03\x04" + content[4:])), (VAL, "not an uncompressed tar")
    ),
    "shards: a flipped header": Case(
        shard(overwritten(VAL, lambda content: b"\xff" + content[1:])), (VAL, "not an uncompressed tar")
    ),
    "shards: one tar behind another": Case(
        shard(overwritten(VAL, lambda content: content + content)), (VAL, "two tars in one file")
    ),
    "shards: an image twice": Case(
        shard(tar(FIRST, lambda: train(("0002.hr.png", png(picture(2, 64, 64)))))), ("0002", "duplicate key")
    ),
    "shards: a sample without an image": Case(
        shard(tar(FIRST, lambda: train(("0002.json", b"{}"), numbers=(0, 1)))), ("0002", "no HR image.*found json")
    ),
    "shards: a pickle for an image": Case(
        shard(tar(FIRST, lambda: train(("0002.hr.png", bomb()), numbers=(0, 1)))), ("set/0002 .*not an image",)
    ),
    "shards: a pickle beside no image": Case(
        shard(tar(FIRST, lambda: train(("0002.pyd", bomb()), numbers=(0, 1)))), ("0002", "no HR image.*found pyd")
    ),
    "shards: an image of nothing": Case(
        shard(tar(FIRST, lambda: train(("0002.hr.png", b""), numbers=(0, 1)))), ("set/0002 .*zero bytes",)
    ),
    "shards: an image cut off": Case(
        shard(tar(FIRST, lambda: train(("0002.hr.png", png(picture(2, 64, 64))[:900]), numbers=(0, 1)))),
        ("set/0002 .*truncated",),
    ),
    "shards: an image below the crop": Case(
        shard(tar(FIRST, lambda: train(("0002.hr.png", png(picture(2, 32, 32))), numbers=(0, 1)))),
        ("set/0002.* below the crop of 64",),
    ),
    "shards: an LR image of another size": Case(shard(tar(VAL, lambda: pairs())), ("set/0101: .*no pair at scale 4",)),
    "shards: an evaluation with a damaged image": Case(
        shard(tar(VAL, lambda: [("0100.hr.png", b"GIF89a"), ("0101.hr.png", png(picture(101, 64, 64)))]), "fit"),
        ("an evaluation set must be complete: set/0100",),
    ),
    "shards: no sample can be used": Case(
        shard(lambda folder: [tar(name, lambda: only_bombs())(folder) for name in (FIRST, SECOND)] and None, "fit"),
        ("(?s)bad samples, more than|no sample of the training set can be used",),
    ),
    "shards: a link out of the tar": Case(shard(lambda folder: linked(folder / VAL)), (VAL, "holds 1 of 2 samples")),
}


def only_bombs() -> list[tuple[str, bytes]]:
    return [(f"{number:04d}.hr.png", bomb()) for number in range(3)]


def pairs() -> list[tuple[str, bytes]]:
    """Two pairs, of which the second has an LR image of another size."""
    return [
        (f"{number:04d}.{role}.png", png(picture(number, *size)))
        for number, height in ((100, 16), (101, 8))
        for role, size in (("hr", (64, 64)), ("lr", (height, 16)))
    ]


def linked(path: Path) -> None:
    """A tar whose second member is a link to a file outside of it."""
    write_tar(path, [("0100.hr.png", png(picture(100, 64, 64)))])
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo("0101.hr.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)


# Images.


def image(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Good], list[str]]:
    """A folder with one good image, and one of this content."""

    def make(good: Good) -> list[str]:
        Path("photos").mkdir()
        picture(0, 16, 16).save("photos/good.png")
        Path("photos", name).write_bytes(content if isinstance(content, bytes) else content())
        enlarge = ["predict", "--ckpt_path", str(good.checkpoint), "--input", "photos", "--output", "enlarged"]
        return [*enlarge, "--trainer.accelerator", "cpu"]

    return make


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int) -> bytes:
    """A PNG file that announces a size, and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", b"x\x9c\x03\x00\x00\x00\x00\x01")
        + chunk(b"IEND", b"")
    )


def encoded(kind: str, pixels: Any = None, **options: Any) -> bytes:
    made = io.BytesIO()
    (picture(1, 16, 16) if pixels is None else Image.fromarray(pixels)).save(made, kind, **options)
    return made.getvalue()


DONE = "enlarged/good.png"
IMAGE_CASES = {
    "images: of nothing": Case(image("bad.png", b""), ("photos/bad.png: zero bytes",), DONE),
    "images: a text": Case(image("bad.png", b"not an image"), ("photos/bad.png: not an image",), DONE),
    "images: a page": Case(image("bad.jpg", b"<html>404</html>"), ("photos/bad.jpg: not an image",), DONE),
    "images: a pickle": Case(image("bad.png", bomb), ("photos/bad.png: not an image",), DONE),
    "images: a vector image": Case(
        image("bad.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("photos/bad.png: not an image",), DONE
    ),
    "images: only a signature": Case(image("bad.png", b"\x89PNG\r\n\x1a\n"), ("photos/bad.png: ",), DONE),
    "images: a PNG cut off": Case(
        image("bad.png", lambda: encoded("PNG")[:300]), ("photos/bad.png: .*truncated",), DONE
    ),
    "images: a JPEG cut off": Case(
        image("bad.jpg", lambda: encoded("JPEG")[:-60]), ("photos/bad.jpg: .*truncated",), DONE
    ),
    "images: a WebP cut off": Case(image("bad.webp", lambda: encoded("WEBP")[:60]), ("photos/bad.webp: ",), DONE),
    "images: a TIFF cut off": Case(image("bad.tif", lambda: encoded("TIFF")[:200]), ("photos/bad.tif: ",), DONE),
    "images: a GIF cut off": Case(image("bad.gif", lambda: encoded("GIF")[:20]), ("photos/bad.gif: ",), DONE),
    "images: a BMP cut off": Case(image("bad.bmp", lambda: encoded("BMP")[:100]), ("photos/bad.bmp: ",), DONE),
    "images: a PNG with flipped bytes": Case(
        image("bad.png", lambda: encoded("PNG")[:60] + bytes(40) + encoded("PNG")[100:]), ("photos/bad.png: ",), DONE
    ),
    "images: without pixels": Case(image("bad.png", lambda: png_of(0, 16)), ("photos/bad.png: ",), DONE),
    "images: a bomb of pixels": Case(
        image("bad.png", lambda: png_of(60_000, 60_000)), ("photos/bad.png: .*megapixels; cut it into parts",), DONE
    ),
    "images: pixels of 32 bits": Case(
        image("bad.tif", lambda: encoded("TIFF", np.full((16, 16), 1 << 20, np.int32))),
        ("photos/bad.tif: 32-bit integer pixels", "save it with 8 or 16 bits"),
        DONE,
    ),
    "images: floating point": Case(
        image("bad.tif", lambda: encoded("TIFF", np.full((16, 16), 0.5, np.float32))), ("photos/bad.tif: ",), DONE
    ),
    "images: an array": Case(image("bad.png", lambda: array()), ("photos/bad.png: not an image",), DONE),
    "images: a folder of none": Case(
        lambda good: [*image("bad.txt", b"")(good)[:4], "photos/none", "--output", "enlarged"],
        ("photos/none: no such",),
    ),
    "images: none that is one": Case(
        lambda good: [*image("bad.txt", b"")(good)[:4], "photos/bad.txt", "--output", "enlarged"],
        ("photos/bad.txt: zero bytes",),
    ),
    "images: pack one that is cut off": Case(
        lambda good: image("bad.png", encoded("PNG")[:300])(good) and ["pack", "photos", "out", "--workers", "1"],
        ("photos/bad.png", "truncated", "leave_out"),
    ),
    "images: score one that is cut off": Case(
        lambda good: image("bad.png", encoded("PNG")[:300])(good) and ["score", "photos", "photos", "--out", "scores"],
        ("photos/bad.png", "truncated"),
    ),
    "images: score one of another size": Case(
        lambda good: other_size() or ["score", "a", "b", "--out", "scores"],
        ("a/0.png has 16x16 pixels, b/0.png 32x32",),
    ),
    "images: preview one that is a text": Case(
        lambda good: (
            image("bad.png", b"text")(good)
            and ["preview", "photos/bad.png", "--degradation", "bicubic", "--out", "sheet.png"]
        ),
        ("photos/bad.png: not an image",),
    ),
}


def array() -> bytes:
    """A numpy file of Python objects."""
    made = io.BytesIO()
    np.save(made, np.array([Bomb(Path(EXECUTED).resolve())]), allow_pickle=True)
    return made.getvalue()


def other_size() -> None:
    for folder, size in (("a", 16), ("b", 32)):
        Path(folder).mkdir()
        picture(0, size, size).save(f"{folder}/0.png")


# Checkpoints.


def checkpoint(
    change: Callable[[dict[str, Any]], Any], command: str = "predict", name: str = "bad.ckpt"
) -> Callable[[Good], list[str]]:
    """A checkpoint whose content is changed, or whose bytes or content are what `change` returns."""

    def make(good: Good) -> list[str]:
        content: dict[str, Any] = {**good.content, "state_dict": dict(good.content["state_dict"])}
        content["hyper_parameters"] = json.loads(json.dumps(good.content["hyper_parameters"]))
        made = change(content)
        if isinstance(made, bytes):
            Path(name).write_bytes(made)
        else:
            torch.save(content if made is None else made, name)
        if command == "fit":
            return ["fit", *arguments(SR3), "--ckpt_path", name, "--trainer.max_steps=2"]
        picture(0, 16, 16).save("photo.png")
        return [
            "predict",
            "--ckpt_path",
            name,
            "--input",
            "photo.png",
            "--output",
            "out",
            "--trainer.accelerator",
            "cpu",
        ]

    return make


def damaged(change: Callable[[bytes], bytes], command: str = "predict") -> Callable[[Good], list[str]]:
    """A checkpoint whose bytes are changed."""

    def make(good: Good) -> list[str]:
        content = change(good.checkpoint.read_bytes())
        return checkpoint(lambda _: content, command)(good)

    return make


def weight_flipped(content: bytes) -> bytes:
    """The bytes with one bit of the largest weight flipped."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        parts = [info for info in file.infolist() if "/data/" in info.filename]
    part = max(parts, key=lambda info: info.file_size)
    names = sum(struct.unpack("<HH", content[part.header_offset + 26 : part.header_offset + 30]))
    place = part.header_offset + 30 + names + part.file_size // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def legacy(value: Any) -> bytes:
    """A file as PyTorch wrote it before 1.6."""
    made = io.BytesIO()
    torch.save(value, made, _use_new_zipfile_serialization=False)
    return made.getvalue()


def arguments_of(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """A change of the constructor's arguments."""
    return lambda content: change(content["hyper_parameters"]) and None


FIRST_WEIGHT = "network.downs.0.weight"
CHECKPOINT_CASES = {
    "checkpoints: missing": Case(
        lambda good: ["test", "--ckpt_path", "none.ckpt", *arguments(SR3)], ("none.ckpt: no such checkpoint",)
    ),
    "checkpoints: none in a run": Case(
        lambda good: ["test", "--ckpt_path", "last", *arguments(SR3)],
        ("runs/sr3: no run there has a checkpoints/last",),
    ),
    "checkpoints: a folder": Case(
        lambda good: ["test", "--ckpt_path", ".", *arguments(SR3)],
        (r"\.: is no exported method, it has no model\.safetensors; give a checkpoint's file",),
    ),
    "checkpoints: of nothing": Case(damaged(lambda content: b""), ("bad.ckpt: is ",)),
    "checkpoints: a text": Case(damaged(lambda content: b"weights"), ("bad.ckpt: is ",)),
    "checkpoints: a page": Case(damaged(lambda content: b"<html>404</html>"), ("bad.ckpt: is ",)),
    "checkpoints: a pointer to a large file": Case(
        damaged(lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("bad.ckpt: is ", "git lfs pull"),
    ),
    "checkpoints: half": Case(damaged(lambda content: content[: len(content) // 2]), ("bad.ckpt: is damaged",)),
    "checkpoints: its last byte missing": Case(damaged(lambda content: content[:-1]), ("bad.ckpt: is damaged",)),
    "checkpoints: a flipped bit": Case(damaged(weight_flipped), ("bad.ckpt: is damaged: the checksum",)),
    "checkpoints: a flipped bit, in training": Case(
        damaged(weight_flipped, "fit"), ("bad.ckpt: is damaged: the checksum",)
    ),
    "checkpoints: zeros in the middle": Case(
        damaged(lambda content: content[:9000] + bytes(9000) + content[18000:]), ("bad.ckpt: is damaged",)
    ),
    "checkpoints: another zip": Case(damaged(lambda content: other_zip()), ("bad.ckpt: is damaged or no checkpoint",)),
    "checkpoints: a pickle that executes": Case(
        damaged(lambda content: bomb()), ("bad.ckpt: .*could execute code", "safetensors")
    ),
    "checkpoints: an object that executes": Case(
        checkpoint(lambda content: {"state_dict": Bomb(Path(EXECUTED).resolve())}), ("bad.ckpt: .*could execute code",)
    ),
    "checkpoints: one that executes, in training": Case(
        checkpoint(lambda content: content.update(extra=Bomb(Path(EXECUTED).resolve())), "fit"),
        ("bad.ckpt: .*could execute code",),
    ),
    "checkpoints: an old form that executes": Case(
        checkpoint(lambda content: legacy({"state_dict": Bomb(Path(EXECUTED).resolve())})),
        ("bad.ckpt: .*could execute code",),
    ),
    "checkpoints: a module": Case(
        checkpoint(lambda content: torch.nn.Linear(1, 1)), ("bad.ckpt: .*could execute code",)
    ),
    "checkpoints: a list": Case(checkpoint(lambda content: [1, 2]), ("bad.ckpt: holds a list, not a checkpoint",)),
    "checkpoints: a tensor": Case(checkpoint(lambda content: torch.zeros(2)), ("bad.ckpt: holds a Tensor",)),
    "checkpoints: an empty one": Case(
        checkpoint(lambda content: content.clear()), ("bad.ckpt: was not written by", "lightning import")
    ),
    "checkpoints: weights alone": Case(
        checkpoint(lambda content: content.pop("hyper_parameters") and None),
        ("bad.ckpt: was not written by", "lightning import"),
    ),
    "checkpoints: without weights": Case(
        checkpoint(lambda content: content.pop("state_dict") and None), ("bad.ckpt: was not written by",)
    ),
    "checkpoints: arguments that are a list": Case(
        checkpoint(lambda content: content.update(hyper_parameters=[1])), ("bad.ckpt: ",)
    ),
    "checkpoints: a class that is none": Case(
        checkpoint(arguments_of(lambda stored: stored.update(_class_path="lightning_modules.sr3.SR4"))), ("SR4",)
    ),
    "checkpoints: a class that executes": Case(
        checkpoint(
            arguments_of(lambda stored: stored.update(_class_path="subprocess.Popen", args=["mkdir", EXECUTED]))
        ),
        ("Popen",),
    ),
    "checkpoints: a part that executes": Case(
        checkpoint(
            arguments_of(
                lambda stored: stored.update(
                    sampler={"class_path": "subprocess.Popen", "init_args": {"args": ["mkdir", EXECUTED]}}
                )
            )
        ),
        ("sampler", "Popen"),
    ),
    "checkpoints: a module that is executed on import": Case(
        lambda good: imported() or checkpoint(arguments_of(lambda stored: stored.update(_class_path="bomb.SR3")))(good),
        ("bomb.SR3",),
    ),
    "checkpoints: an argument that is unknown": Case(
        checkpoint(arguments_of(lambda stored: stored.update(nrm="l1"))), ("nrm", r"did you mean norm\?")
    ),
    "checkpoints: an argument of another kind": Case(
        checkpoint(arguments_of(lambda stored: stored.update(draws="many"))), ("draws", "many")
    ),
    "checkpoints: a weight is missing": Case(
        checkpoint(lambda content: content["state_dict"].pop(FIRST_WEIGHT) is None or None),
        (f"missing {FIRST_WEIGHT}",),
    ),
    "checkpoints: a weight too many": Case(
        checkpoint(lambda content: content["state_dict"].update(more=torch.zeros(1))), ("unknown more",)
    ),
    "checkpoints: a weight of another shape": Case(
        checkpoint(lambda content: content["state_dict"].update({FIRST_WEIGHT: torch.zeros(1)})),
        (FIRST_WEIGHT, "size|shape"),
    ),
    "checkpoints: a weight that is a word": Case(
        checkpoint(lambda content: content["state_dict"].update({FIRST_WEIGHT: "word"})), (FIRST_WEIGHT,)
    ),
    "checkpoints: weights that are NaN": Case(
        checkpoint(lambda content: content["state_dict"].update({FIRST_WEIGHT: nan(content)})),
        ("photo.*NaN|NaN.*photo",),
    ),
    "checkpoints: without the state of training": Case(
        checkpoint(lambda content: content.pop("optimizer_states") and None, "fit"), ("bad.ckpt: holds weights alone",)
    ),
    "checkpoints: of another method": Case(
        lambda good: ["fit", *arguments(CONFIGS / "edm.yaml"), "--ckpt_path", str(good.checkpoint)], ("SR3", "EDM")
    ),
    "checkpoints: of another scale": Case(
        lambda good: ["fit", *arguments(SR3), "--ckpt_path", str(good.checkpoint), "--data.init_args.scale=2"],
        ("was trained for x4", "x2"),
    ),
    "checkpoints: safetensors of nothing": Case(
        checkpoint(lambda content: b"", name="bad.safetensors"), ("bad.safetensors: is damaged or no safetensors file",)
    ),
    "checkpoints: safetensors that announce too much": Case(
        checkpoint(lambda content: struct.pack("<Q", 1 << 60) + b"{}", name="bad.safetensors"),
        ("bad.safetensors: is damaged or no safetensors file",),
    ),
}


def other_zip() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("a.txt", "text")
    return made.getvalue()


def imported() -> None:
    """A module that executes something when it is imported, where it could be found."""
    Path("bomb.py").write_text(f"import os\nos.mkdir({EXECUTED!r})\nfrom lightning_modules.sr3 import SR3\n")


def nan(content: Mapping[str, Any]) -> torch.Tensor:
    return torch.full_like(content["state_dict"][FIRST_WEIGHT], torch.nan)


# Results.


def results(change: Callable[[dict[str, Any]], Any]) -> Callable[[Good], list[str]]:
    """A results file that is changed beside a good one; or its bytes are what `change` returns."""

    def make(good: Good) -> list[str]:
        for name in ("a", "b"):
            results_file(Path(name), {"psnr_y": numbers(0, 3, 30)}, name=name)
        content = json.loads(Path("b/results.json").read_text())
        made = change(content)
        Path("b/results.json").write_bytes(made if isinstance(made, bytes) else json.dumps(content).encode())
        return ["compare", "a", "b", "--out", "out"]

    return make


RESULT_CASES = {
    "results: missing": Case(
        lambda good: ["compare", "a", "b", "--out", "out"], ("a: no such results file; `lightning test`",)
    ),
    "results: of nothing": Case(results(lambda content: b""), ("b/results.json: is cut off",)),
    "results: cut off": Case(
        results(lambda content: json.dumps(content).encode()[:200]), ("b/results.json: is cut off",)
    ),
    "results: a pickle": Case(results(lambda content: bomb()), ("b/results.json: is cut off or no results file",)),
    "results: a list": Case(results(lambda content: b"[]"), ("b/results.json: is no results file of this version",)),
    "results: of another version": Case(
        results(lambda content: content.update(format=99)), ("b/results.json: is no results file of this version",)
    ),
    "results: without rows": Case(
        results(lambda content: content.pop("rows") and None), ("b/results.json: lacks rows",)
    ),
    "results: rows that are a word": Case(
        results(lambda content: content.update(rows="rows")), ("b/results.json: rows", "measure it again")
    ),
    "results: a row without its image": Case(
        results(lambda content: content["rows"][0].pop("image") and None), ("b/results.json: rows.*image",)
    ),
    "results: a value that is a word": Case(
        results(lambda content: content["rows"][0].update(model="good")), ("b/results.json: .*good",)
    ),
    "results: a value that is NaN": Case(
        results(lambda content: content["rows"][0].update(model=None)), ("b/results.json: set/000: psnr_y is NaN",)
    ),
    "results: no mean": Case(results(lambda content: content["means"].clear()), ("b/results.json: .*means.*psnr_y",)),
    "results: means that are a list": Case(
        results(lambda content: content.update(means=[])), ("b/results.json: means", "measure it again")
    ),
    "results: of other images": Case(
        results(lambda content: content["data"].update(hr_sha256="other", count=9)), ("b/results.json|images",)
    ),
    "results: of another protocol": Case(
        results(lambda content: content.update(protocol="other@1")), ("other@1", "made-up@1")
    ),
    "results: of another definition": Case(
        results(lambda content: content["definitions"]["psnr_y"].update(definition="other")), ("psnr_y", "other")
    ),
}


# Published weights.


def published(
    change: Callable[[dict[str, torch.Tensor]], Any], name: str = "published.pth", config: str | None = None
) -> Callable[[Good], list[str]]:
    """Published weights that are changed, or what `change` returns instead."""

    def make(good: Good) -> list[str]:
        state = dict(good.published)
        made = change(state)
        content = {"params_ema": state} if made is None else made
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        else:
            torch.save(content, name)
        return ["import", name, "--config", config or str(good.rrdb), "--out", "out.ckpt"]

    return make


FIRST_PUBLISHED = "conv_first.weight"
PUBLISHED_CASES = {
    "published: missing": Case(
        lambda good: ["import", "none.pth", "--config", str(good.rrdb), "--out", "out.ckpt"], ("none.pth: no such",)
    ),
    "published: a pickle that executes": Case(
        published(lambda state: bomb()), ("published.pth: .*could execute code", "safetensors")
    ),
    "published: an object that executes": Case(
        published(lambda state: {"params": Bomb(Path(EXECUTED).resolve())}), ("published.pth: .*could execute code",)
    ),
    "published: an old form that executes": Case(
        published(lambda state: legacy(Bomb(Path(EXECUTED).resolve()))), ("published.pth: .*could execute code",)
    ),
    "published: a page": Case(published(lambda state: b"<!doctype html>"), ("published.pth: is ",)),
    "published: no tensors": Case(
        published(lambda state: {"a": 1, "b": 2}), ("published.pth: holds no state dict.*a, b",)
    ),
    "published: an empty state dict": Case(
        published(lambda state: {"params": {}}), ("published.pth: holds no state dict",)
    ),
    "published: a tensor is missing": Case(
        published(lambda state: state.pop(FIRST_PUBLISHED) is None or None), ("published.pth: .*conv_first",)
    ),
    "published: a tensor too many": Case(
        published(lambda state: state.update(more=torch.zeros(1))), ("published.pth: .*more",)
    ),
    "published: a tensor of another shape": Case(
        published(lambda state: state.update({FIRST_PUBLISHED: torch.zeros(1)})), ("published.pth: .*conv_first",)
    ),
    "published: of another method": Case(
        published(lambda state: None, config=str(CONFIGS / "sr3_ddpm_ffhq_16_128.yaml")), ("published.pth: ",)
    ),
    "published: a config without a model": Case(
        published(lambda state: None, config=str(CONFIGS / "sampler/ddim.yaml")), ("ddim.yaml",)
    ),
    "published: a target that cannot be written": Case(
        lambda good: [*published(lambda state: None)(good)[:-1], "/dev/null/out.ckpt"], ("/dev/null",)
    ),
}

CASES = CONFIG_CASES | SHARD_CASES | IMAGE_CASES | CHECKPOINT_CASES | RESULT_CASES | PUBLISHED_CASES


@pytest.mark.parametrize("name", CASES)
def test_one_message_and_nothing_executed(
    name: str, good: Good, empty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(CASES[name], good, capsys)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(case: Case, good: Good, capsys: pytest.CaptureFixture[str]) -> None:
    """Types what a case says, and looks at everything that it left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning", *case.make(good)])
        with pytest.raises(SystemExit) as end:
            main()
    output = capsys.readouterr()
    said = f"{output.out}{output.err}{end.value.code}"
    assert end.value.code not in (0, None), said
    assert "Traceback" not in said
    for expected in case.said:
        assert re.search(expected, said), said
    messages = re.findall(r"^\s*(?:error|PROBLEM): ", f"{output.out}{output.err}\n{end.value.code}", re.MULTILINE)
    assert len(messages) == 1, said
    assert not Path(EXECUTED).exists(), "something was executed"
    assert case.done is None or Path(case.done).is_file(), said
