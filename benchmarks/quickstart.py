"""The quick start: trains SRDiff + YODA on bundled photographs, tests it on two others, and enlarges those.

    python -m benchmarks.quickstart [--out runs/quickstart]

Every step is a `lightning` command, printed before it runs. `QUICKSTART_STEPS` shortens the training.
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

import torch
from PIL import Image

from datamodules.degradations.bicubic import Bicubic
from datamodules.degradations.levels import to_uint8
from datamodules.images import decode
from datamodules.photos import VAL, bundled

SCALE = 4


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


def summary(results: dict[str, object]) -> str:
    """The table of scores that is printed at the end."""
    rows = [f"{'on photographs it never saw':28s} {'bicubic':>9s} {'model':>9s}"]
    for name, title in (("psnr_y", "PSNR-Y (dB)"), ("ssim_y", "SSIM-Y"), ("psnr_rgb", "PSNR-RGB (dB)")):
        score = results["means"][name]
        rows.append(f"{title:28s} {score['bicubic']:9.3f} {score['model']:9.3f}")
    return "\n".join(rows)


def main() -> None:
    """Trains, tests and enlarges; prints the scores and writes results.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder of everything it leaves")
    out: Path = parser.parse_args().out

    if out.exists():  # nothing of an earlier run is lost
        shutil.move(out, out.with_name(f"{out.name}-{time.strftime('%Y%m%d-%H%M%S')}"))

    began = time.perf_counter()
    logs = ["--trainer.logger.init_args.save_dir", str(out), "--trainer.logger.init_args.version", ""]
    lightning("fit", "--config", "configs/quickstart.yaml", *logs, "--experiment", "train", *training_options())
    trained = time.perf_counter()

    checkpoint = str(out / "train" / "checkpoints" / "last.ckpt")
    lightning("test", "--ckpt_path", checkpoint, *logs, "--experiment", "test")
    write_low_resolution(out / "small")
    lightning("predict", "--ckpt_path", checkpoint, "--input", str(out / "small"), "--output", str(out / "enlarged"))

    results = json.loads((out / "test" / "results.json").read_text())
    results["seconds"] = {"training": trained - began, "total": time.perf_counter() - began}
    pictures = [*sorted((out / "test" / "samples").glob("*.png")), *sorted((out / "enlarged").glob("*.png"))]
    results["pictures"] = [str(path) for path in pictures]
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")

    print(f"\n{summary(results)}\n(x{SCALE}, {results['method']['sampler']}, {results['data']['count']} photographs)\n")
    print("pictures (side by side, then enlarged alone):", *results["pictures"], sep="\n  ")
    print(f"\nyour own:  lightning enlarge PHOTOS -o FOLDER --weights {checkpoint}")
    print(f"all of it: {out}/results.json, after {results['seconds']['total']:.0f} s")


if __name__ == "__main__":
    main()
