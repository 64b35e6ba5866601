"""The photographs that the claims are trained and scored on, from BSDS500's training and test photographs.

    python -m benchmarks.claims.photographs BSDS400 [--out data/bsds400]

Every tenth photograph by name is left out of training: `train` holds the others, `val` those, and `crops` three squares
of 160x160 pixels of each of those, 120 in all, as PNG. BSDS500's validation photographs are the benchmark B100 and must
not be among the photographs given.
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image

from datamodules.images import find_images

HELD_OUT, SIDE, CROPS = 10, 160, 3


def crops(image: Image.Image) -> list[Image.Image]:
    """Squares along the middle of the longer side, from its one end to its other."""
    free = image.width - SIDE, image.height - SIDE
    along = 0 if free[0] >= free[1] else 1
    boxes = []
    for number in range(CROPS):
        corner = [free[0] // 2, free[1] // 2]
        corner[along] = free[along] * number // (CROPS - 1)
        boxes.append((corner[0], corner[1], corner[0] + SIDE, corner[1] + SIDE))
    return [image.crop(box) for box in boxes]


def main() -> None:
    """Copies and cuts the photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/bsds400"))
    given = parser.parse_args()

    for name in ("train", "val", "crops"):
        (given.out / name).mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(find_images(given.photographs)), start=1):
        split = "train" if number % HELD_OUT else "val"
        shutil.copyfile(path, given.out / split / path.name)
        if split == "val":
            with Image.open(path) as image:
                for index, crop in enumerate(crops(image.convert("RGB"))):
                    crop.save(given.out / "crops" / f"{path.stem}-{index}.png")


if __name__ == "__main__":
    main()
