"""The quick start: enlarges two photographs with weights that are here, then with a model that it trains itself.

    python -m benchmarks.quickstart [--out runs/quickstart]

The packaged weights `photo-x4` enlarge at once. Then SRDiff + YODA is trained for minutes on other photographs that are
here too. Both are tested on the two and compared. Every step is a `lightning` command, printed before it runs.
`QUICKSTART_STEPS` shortens the training.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from datamodules.degradations.bicubic import Bicubic
from datamodules.degradations.levels import to_uint8
from datamodules.images import decode
from datamodules.photos import VAL, bundled

SCALE = 4
SHIPPED = "photo-x4"  # of `lightning weights`


def lightning(*arguments: str) -> None:
    """Runs a `lightning` command of this environment; exits if it fails."""
    command = [str(Path(sys.executable).with_name("lightning")), *arguments]
    print(f"\n$ {shlex.join(['lightning', *arguments])}", flush=True)
    if subprocess.run(command, check=False).returncode:
        sys.exit("the quick start stops here: the command above failed")


def training_options() -> list[str]:
    """The precision and the number of steps."""
    # bfloat16 is slower than float32 on processors that have no matrix instructions for it.
    multiplies = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    options = ["--trainer.precision", "bf16-mixed"] if multiplies else []
    steps = os.environ.get("QUICKSTART_STEPS")
    return [*options, "--trainer.max_steps", steps] if steps else options


def write_low_resolution(folder: Path) -> None:
    """Writes the test photographs downscaled, in the place of a user's own small photographs."""
    folder.mkdir(parents=True)
    shrink = Bicubic(SCALE)
    for name in VAL:
        hr = torch.from_numpy(decode(bundled(name), name).copy()).permute(2, 0, 1)[None] / 255
        height, width = (side - side % SCALE for side in hr.shape[-2:])
        lr = to_uint8(shrink.apply(hr[..., :height, :width], []))[0].permute(1, 2, 0).numpy()
        Image.fromarray(lr).save(folder / f"{Path(name).stem}.png")


def summary(shipped: dict[str, Any], trained: dict[str, Any]) -> str:
    """The table of scores that is printed at the end."""
    rows = [f"{'on photographs they never saw':30s} {'bicubic':>9s} {SHIPPED:>9s} {'trained':>9s}"]
    for name, title in (("psnr_y", "PSNR-Y (dB)"), ("ssim_y", "SSIM-Y"), ("psnr_rgb", "PSNR-RGB (dB)")):
        means = shipped["means"][name], trained["means"][name]
        scores = means[0]["bicubic"], means[0]["model"], means[1]["model"]
        rows.append(f"{title:30s} " + " ".join(f"{score:9.3f}" for score in scores))
    samplers = shipped["method"]["sampler"], trained["method"]["sampler"]
    rows.append(f"{'sampler':30s} {'':9s} {samplers[0]:>9s} {samplers[1]:>9s}")
    return "\n".join(rows)


def main() -> None:
    """Enlarges, trains, tests and compares; prints the scores and writes results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of everything it leaves")
    out: Path = parser.parse_args().out

    if out.exists():  # nothing of an earlier run is lost
        shutil.move(out, out.with_name(f"{out.name}-{time.strftime('%Y%m%d-%H%M%S')}"))

    began = time.perf_counter()
    small = out / "small"
    write_low_resolution(small)
    lightning("enlarge", str(small), "-o", str(out / SHIPPED), "--weights", SHIPPED, "--gallery")
    shown = time.perf_counter()

    logs = ["--trainer.logger.init_args.save_dir", str(out), "--trainer.logger.init_args.version", ""]
    lightning("fit", "--config", "configs/quickstart.yaml", *logs, "--experiment", "train", *training_options())
    trained = time.perf_counter()

    checkpoint = str(out / "train" / "checkpoints" / "last.ckpt")
    photos = ["--config", "configs/data/photos.yaml"]
    lightning("test", "--ckpt_path", SHIPPED, *photos, *logs, "--experiment", f"test-{SHIPPED}")
    lightning("test", "--ckpt_path", checkpoint, *photos, *logs, "--experiment", "test-trained")
    lightning("enlarge", str(small), "-o", str(out / "trained"), "--weights", checkpoint, "--gallery")

    tests = {name: out / f"test-{name}" / "results.json" for name in (SHIPPED, "trained")}
    named = [f"{name}={path}" for name, path in tests.items()]
    lightning("compare", *named, "--out", str(out / "compare"))

    shipped, results = (json.loads(path.read_text()) for path in tests.values())
    results["shipped"] = shipped["means"]
    seconds = {"first pictures": shown - began, "training": trained - shown, "total": time.perf_counter() - began}
    results["seconds"] = seconds
    pictures = [path for name in (SHIPPED, "trained") for path in sorted((out / name).glob("*.png"))]
    results["pictures"] = [*map(str, pictures), *map(str, sorted((out / "compare").glob("*.*")))]
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")

    print(f"\n{summary(shipped, results)}\n(x{SCALE}, {results['data']['count']} photographs)\n")
    print("pictures and comparison:", *results["pictures"], sep="\n  ")
    print(f"\nyour own:  lightning enlarge PHOTOS -o FOLDER --weights {SHIPPED}   (or {checkpoint})")
    print(f"all of it: {out}/results.json; first pictures after {seconds['first pictures']:.0f} s, ", end="")
    print(f"everything after {seconds['total']:.0f} s")


if __name__ == "__main__":
    main()
