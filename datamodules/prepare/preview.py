"""`lightning preview`: a contact sheet of degraded images, each with its recipe printed beneath.

    lightning preview PHOTOS --degradation resshift --out sheet.png
    lightning preview PHOTOS --config configs/resshift.yaml --draws 4 --out sheet.png

PHOTOS are image files or folders. The sharp image is on the left; on the right is the low-resolution one, enlarged by
repeating its pixels.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datamodules.degradations.degradation import Degradation, Recipe
from datamodules.degradations.levels import from_uint8, to_uint8
from datamodules.images import ImageError, decode, find_images

PRESETS = Path(__file__).resolve().parents[2] / "configs/data/degradation"
MARGIN, TEXT_HEIGHT = 8, 12  # pixels


class Example(NamedTuple):
    """One image of the sheet."""

    title: str
    hr: Tensor  # [3,H,W] in [0,1]
    lr: Tensor  # [3,h,w] in [0,1]
    recipe: Recipe


def preset_names() -> str:
    """The names of the presets in configs/data/degradation."""
    return ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))


def preset(name: str) -> Path:
    """The config of a preset.

    Raises:
        FileNotFoundError: there is no such preset; the message lists them.
    """
    path = PRESETS / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such preset of a degradation; there are {preset_names()}")
    return path


def examples(
    degradation: Degradation,
    paths: Sequence[Path],
    *,
    crop: int = 256,
    draws: int = 1,
    epoch: int = 0,
    seed: int = 0,
    name: str = "",
) -> Iterator[Example]:
    """Degrades the middle of each image, once per draw.

    Args:
        degradation: what to show.
        paths: image files.
        crop: side of the patch from the middle of each image, in pixels.
        draws: how often each image is degraded, in consecutive epochs.
        epoch: the first of them.
        seed: that of the data.
        name: the data set's, the first part of every key.

    Raises:
        ImageError: a file is not a readable image.
        ValueError: a patch is too small for the degradation.
    """
    for path in paths:
        image = torch.from_numpy(decode(path, str(path)).copy()).permute(2, 0, 1)
        hr = centre_crop(from_uint8(image), crop, degradation.scale)
        key = f"{name}/{path.stem}" if name else path.stem
        degradation.check_size(*hr.shape[-2:], key=key)

        target = degradation.target(hr[None])
        for number in range(epoch, epoch + draws):
            recipe = degradation.recipe(key, epoch=number, seed=seed)
            yield Example(f"{key}  epoch {number}", target[0], degradation.apply(target, [recipe])[0], recipe)


def centre_crop(image: Tensor, size: int, scale: int) -> Tensor:
    """The middle of `[3,H,W]`, at most `size` pixels a side, sides cut to multiples of `scale`."""
    height, width = (min(side, size) // scale * scale for side in image.shape[-2:])
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


def recipe_lines(recipe: Recipe) -> list[str]:
    """A recipe as text, one operation a line; numbers are shortened, seeds left out."""
    operations = recipe.get("operations", [recipe])
    return [
        " ".join(_parameter(key, value) for key, value in operation.items() if key != "seed")
        for operation in operations
        if operation
    ]


def _parameter(key: str, value: object) -> str:
    if key in ("name", "kernel", "mode"):
        return str(value)
    return f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"


def _wrapped(recipe: Recipe, width: int) -> list[str]:
    """The lines of a recipe, broken to fit `width` pixels."""
    columns = max(16, width // 6)
    return [
        part for line in recipe_lines(recipe) for part in textwrap.wrap(line, columns, subsequent_indent="  ")
    ]  # fmt: skip


def draw_cell(example: Example, size: tuple[int, int]) -> Image.Image:
    """One cell of the sheet, of `size` (width, height) pixels."""
    height, width = example.hr.shape[-2:]
    cell = Image.new("RGB", size, "white")
    cell.paste(_picture(example.hr), (0, 0))
    cell.paste(_picture(example.lr).resize((width, height), Image.Resampling.NEAREST), (width, 0))

    written = "\n".join([example.title, *_wrapped(example.recipe, 2 * width)])
    font = ImageFont.load_default(size=10)
    ImageDraw.Draw(cell).multiline_text((0, height + 4), written, fill="black", font=font, spacing=2)
    return cell


def _picture(image: Tensor) -> Image.Image:
    """`[3,H,W]` in [0,1] as an 8-bit image."""
    return Image.fromarray(np.ascontiguousarray(to_uint8(image).permute(1, 2, 0).numpy()))


def contact_sheet(drawn: Sequence[Example], columns: int) -> Image.Image:
    """All cells in rows of `columns`."""
    width = max(2 * example.hr.shape[-1] for example in drawn)
    rows_of_text = max(len(_wrapped(example.recipe, width)) for example in drawn) + 1
    height = max(example.hr.shape[-2] for example in drawn) + rows_of_text * TEXT_HEIGHT + MARGIN

    columns = min(columns, len(drawn))
    rows = -(-len(drawn) // columns)
    size = columns * (width + MARGIN) + MARGIN, rows * (height + MARGIN) + MARGIN
    sheet = Image.new("RGB", size, "white")
    for index, example in enumerate(drawn):
        row, column = divmod(index, columns)
        corner = MARGIN + column * (width + MARGIN), MARGIN + row * (height + MARGIN)
        sheet.paste(draw_cell(example, (width, height)), corner)
    return sheet


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lightning preview", description=__doc__, formatter_class=layout)
    parser.add_argument("images", nargs="+", type=Path, help="image files or folders")

    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--degradation", help=f"a preset of configs/data/degradation: {preset_names()}")
    source.add_argument(
        "--config", action="append", help="an experiment, a data set, or the config.yaml of a run; later ones win"
    )
    parser.add_argument("--scale", type=int, help="instead of the config's")

    parser.add_argument("--out", type=Path, required=True, help="the sheet, such as sheet.png")
    parser.add_argument("--recipes", type=Path, help="also write all recipes, in full, to this .json")
    parser.add_argument("--columns", type=int, default=4, help="cells in a row of the sheet (4)")
    parser.add_argument("--count", type=int, default=12, help="how many images at most (12)")

    parser.add_argument("--crop", type=int, default=256, help="side of the patch from the middle of each image (256)")
    parser.add_argument("--draws", type=int, default=1, help="how often each image is degraded (1)")
    parser.add_argument(
        "--epoch", type=int, default=0, help="the first; 0, with seed 0, shows the LR images of a validation (0)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the data's (0)")
    parser.add_argument("--name", default="", help="the data set's name, the first part of a key such as div2k/0801")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None, build: Callable[[list[str], int | None], Degradation]) -> None:
    """Writes the sheet; a wrong argument is one message.

    Args:
        arguments: what follows `lightning preview`; None takes those of the process.
        build: makes the degradation that config files describe together, bicubic where they name none, of their paths,
            later ones over earlier ones, and of a scale instead of theirs. Only the command line knows how configs are
            read. It raises an OSError or a ValueError that names the file or the key.
    """
    options = parse(arguments)
    try:
        configs = [str(preset(options.degradation))] if options.degradation else options.config
        degradation = build(configs, options.scale)
        paths = [image for source in options.images for image in find_images(source)][: options.count]
        chosen = {key: getattr(options, key) for key in ("crop", "draws", "epoch", "seed", "name")}
        drawn = list(examples(degradation, paths, **chosen))

        options.out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(drawn, options.columns).save(options.out)
        if options.recipes:
            options.recipes.write_text(json.dumps({example.title: example.recipe for example in drawn}, indent=2))
    except (OSError, ValueError, ImageError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.out}: {len(drawn)} images")
