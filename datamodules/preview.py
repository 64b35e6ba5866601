"""A contact sheet of degraded images, each with its recipe printed beneath.

    python -m datamodules.preview PHOTOS --degradation resshift --out sheet.png
    python -m datamodules.preview PHOTOS --config configs/resshift.yaml --draws 4 --out sheet.png

PHOTOS are image files or folders. The sharp image stands on the left, the low-resolution one, enlarged by repeating its
pixels, on the right.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jsonargparse import ArgumentParser
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datamodules.degradations.bicubic import Bicubic, from_uint8, to_uint8
from datamodules.degradations.degradation import Degradation, Recipe
from datamodules.images import ImageError, decode, find_images

PRESETS = Path(__file__).resolve().parents[1] / "configs/data/degradation"
MARGIN, TEXT_HEIGHT = 8, 12  # pixels


class Example(NamedTuple):
    """One image of the sheet."""

    title: str
    hr: Tensor  # [3,H,W] in [0,1]
    lr: Tensor  # [3,h,w] in [0,1]
    recipe: Recipe


def presets() -> str:
    """The names of the shipped degradations."""
    return ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))


def read_config(path: Path) -> DictConfig:
    """A config file over the files that its `compose` names.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config; the presets for --degradation are {presets()}")
    content = OmegaConf.load(path)
    below = [read_config(path.parent / name) for name in content.pop("compose", [])]
    merged = OmegaConf.merge(*below, content)
    assert isinstance(merged, DictConfig)
    return merged


def build(path: Path, scale: int | None) -> Degradation:
    """The degradation that a config describes at `data.init_args.degradation`; bicubic where it names none.

    Raises:
        ValueError: class or arguments are not those of a degradation.
    """
    config = read_config(path)
    scale = scale or OmegaConf.select(config, "data.init_args.scale") or 4
    OmegaConf.update(config, "data.init_args.scale", scale, force_add=True)
    described = OmegaConf.select(config, "data.init_args.degradation")
    if described is None:
        return Bicubic(scale)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Degradation, "degradation")
    try:
        parsed = parser.parse_object({"degradation": OmegaConf.to_container(described, resolve=True)})
    except argparse.ArgumentError as error:
        raise ValueError(f"{path}: {error}") from error
    degradation = parser.instantiate(parsed).degradation
    assert isinstance(degradation, Degradation)
    return degradation


def examples(degradation: Degradation, paths: Iterable[Path], arguments: argparse.Namespace) -> Iterable[Example]:
    """Degrades the middle of each image, once per draw."""
    for path in paths:
        hr = middle(
            from_uint8(torch.from_numpy(decode(path, str(path)).copy()).permute(2, 0, 1)),
            arguments.crop,
            degradation.scale,
        )
        key = f"{arguments.name}/{path.stem}" if arguments.name else path.stem
        degradation.check_size(*hr.shape[-2:], key=key)
        target = degradation.target(hr[None])
        for epoch in range(arguments.epoch, arguments.epoch + arguments.draws):
            recipe = degradation.recipe(key, epoch=epoch, seed=arguments.seed)
            yield Example(f"{key}  epoch {epoch}", target[0], degradation.apply(target, [recipe])[0], recipe)


def middle(image: Tensor, size: int, scale: int) -> Tensor:
    """The middle of `[3,H,W]`, at most `size` pixels a side, sides cut to multiples of `scale`."""
    height, width = (min(side, size) // scale * scale for side in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


def lines(recipe: Recipe) -> list[str]:
    """A recipe as text, one operation a line; numbers are shortened, seeds left out."""
    operations = recipe.get("operations", [recipe])
    return [" ".join(text(key, value) for key, value in one.items() if key != "seed") for one in operations if one]


def text(key: str, value: object) -> str:
    """One parameter."""
    if key in ("name", "kernel", "mode"):
        return str(value)
    return f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"


def draw(example: Example, cell: tuple[int, int]) -> Image.Image:
    """One cell of the sheet, `cell` wide and high."""
    height, width = example.hr.shape[-2:]
    sheet = Image.new("RGB", cell, "white")
    sheet.paste(picture(example.hr), (0, 0))
    sheet.paste(picture(example.lr).resize((width, height), Image.Resampling.NEAREST), (width, 0))
    written = "\n".join([example.title, *wrapped(example.recipe, 2 * width)])
    font = ImageFont.load_default(size=10)
    ImageDraw.Draw(sheet).multiline_text((0, height + 4), written, fill="black", font=font, spacing=2)
    return sheet


def wrapped(recipe: Recipe, width: int) -> list[str]:
    """The lines of a recipe, broken to fit `width` pixels."""
    return [part for line in lines(recipe) for part in textwrap.wrap(line, max(16, width // 6), subsequent_indent="  ")]


def picture(image: Tensor) -> Image.Image:
    """`[3,H,W]` in [0,1] as an 8-bit image."""
    return Image.fromarray(np.ascontiguousarray(to_uint8(image).permute(1, 2, 0).numpy()))


def sheet_of(drawn: Sequence[Example], columns: int) -> Image.Image:
    """All cells in rows of `columns`."""
    width = max(2 * example.hr.shape[-1] for example in drawn)
    rows = max(len(wrapped(example.recipe, width)) for example in drawn) + 1
    height = max(example.hr.shape[-2] for example in drawn) + rows * TEXT_HEIGHT + MARGIN
    columns = min(columns, len(drawn))
    size = columns * (width + MARGIN) + MARGIN, -(-len(drawn) // columns) * (height + MARGIN) + MARGIN
    sheet = Image.new("RGB", size, "white")
    for index, example in enumerate(drawn):
        row, column = divmod(index, columns)
        place = MARGIN + column * (width + MARGIN), MARGIN + row * (height + MARGIN)
        sheet.paste(draw(example, (width, height)), place)
    return sheet


def arguments_of(command: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.preview",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", type=Path, help="image files or folders")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--degradation", help=f"a preset of configs/data/degradation: {presets()}")
    source.add_argument("--config", type=Path, help="an experiment, a data set, or the config.yaml of a run")
    parser.add_argument("--out", type=Path, required=True, help="the sheet, such as sheet.png")
    parser.add_argument("--recipes", type=Path, help="also write all recipes, in full, to this .json")
    parser.add_argument("--count", type=int, default=12, help="how many images at most (12)")
    parser.add_argument(
        "--draws", type=int, default=1, help="how often each image is degraded, in epochs that follow (1)"
    )
    parser.add_argument("--crop", type=int, default=256, help="side of the patch from the middle of each image (256)")
    parser.add_argument("--columns", type=int, default=4, help="cells in a row of the sheet (4)")
    parser.add_argument("--scale", type=int, help="instead of the config's")
    parser.add_argument("--name", default="", help="the data set's name, the first part of a key such as div2k/0801")
    parser.add_argument(
        "--epoch", type=int, default=0, help="the first; 0, with seed 0, shows the LR images of a validation (0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the data's (0)")
    return parser.parse_args(command)


def main(command: Sequence[str] | None = None) -> None:
    """Writes the sheet; errors in what the user gave are one message."""
    arguments = arguments_of(command)
    try:
        path = arguments.config or PRESETS / f"{arguments.degradation}.yaml"
        degradation = build(path, arguments.scale)
        paths = [image for source in arguments.images for image in find_images(source)][: arguments.count]
        drawn = list(examples(degradation, paths, arguments))
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        sheet_of(drawn, arguments.columns).save(arguments.out)
        if arguments.recipes:
            arguments.recipes.write_text(json.dumps({example.title: example.recipe for example in drawn}, indent=2))
    except (OSError, ValueError, ImageError) as error:
        sys.exit(f"preview: {error}")
    print(f"{arguments.out}: {len(drawn)} images")


if __name__ == "__main__":
    main()
