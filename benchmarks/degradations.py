"""Speed of Real-ESRGAN's degradations in this project and in the reference repositories, on the same images.

    git clone https://github.com/xinntao/Real-ESRGAN && git clone https://github.com/XPixelGroup/BasicSR
    python benchmarks/degradations.py --realesrgan Real-ESRGAN --basicsr BasicSR

The reference is `RealESRGANModel.feed_data`, unmodified, with the options of `train_realesrgan_x4plus.yml`; the
functions it uses of OpenCV and torchvision are replaced below. Its blur kernels are drawn before the timing, and its
queue, because of which it sharpens the targets twice, is left out. For this project everything is timed, from the keys
to the low-resolution images. The two take turns.
"""

import argparse
import importlib.util
import io
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import skimage.data
import torch
import yaml
from kornia.enhance import jpeg_codec_differentiable
from PIL import Image
from torch import Tensor

from datamodules.degradations.image_batch import ImageBatch
from datamodules.degradations.jpeg import compress
from datamodules.degradations.levels import to_uint8
from datamodules.degradations.realesrgan import RealESRGAN

QUALITIES = (10, 30, 50, 75, 95)
PHOTOS = ("astronaut", "coffee", "rocket")


def photographs(count: int, size: int) -> Tensor:
    """Patches of photographs that come with scikit-image, `[count,3,size,size]` in [0, 1]."""
    rng = np.random.default_rng(0)
    patches = []
    for index in range(count):
        photo = getattr(skimage.data, PHOTOS[index % len(PHOTOS)])()
        top, left = (int(rng.integers(side - size + 1)) for side in photo.shape[:2])
        patches.append(torch.from_numpy(photo[top : top + size, left : left + size].copy()).permute(2, 0, 1))
    return torch.stack(patches).float() / 255


def package(name: str, folder: Path) -> ModuleType:
    """A package whose submodules are imported from `folder`, without running its `__init__`."""
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module
    return module


def gaussian_taps(size: int, sigma: float) -> np.ndarray:
    """Replaces `cv2.getGaussianKernel`."""
    sigma = sigma if sigma > 0 else 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    taps = np.exp(-((np.arange(size) - (size - 1) / 2) ** 2) / (2 * sigma**2))
    return (taps / taps.sum())[:, None]


def luma(image: Tensor, num_output_channels: int = 1) -> Tensor:
    """Replaces `torchvision.transforms.functional.rgb_to_grayscale`."""
    return (image * image.new_tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)).sum(-3, keepdim=True)


def reference_modules(realesrgan: Path, basicsr: Path) -> tuple[ModuleType, ModuleType]:
    """Real-ESRGAN's model file and BasicSR's degradation file, imported without the packages that are missing."""
    # What the two files import but the benchmark does not run is replaced by empty modules.
    cv2 = sys.modules["cv2"] = ModuleType("cv2")
    cv2.getGaussianKernel = gaussian_taps
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        package(name, Path())
    sys.modules["torchvision.transforms.functional"].rgb_to_grayscale = luma

    for name in ("basicsr", "basicsr.data", "basicsr.utils", "basicsr.models"):
        package(name, basicsr / name.replace(".", "/"))
    sys.modules["basicsr.models.srgan_model"] = ModuleType("basicsr.models.srgan_model")
    sys.modules["basicsr.models.srgan_model"].SRGANModel = object

    utils = sys.modules["basicsr.utils"]
    utils.DiffJPEG = importlib.import_module("basicsr.utils.diffjpeg").DiffJPEG
    utils.USMSharp = importlib.import_module("basicsr.utils.img_process_util").USMSharp

    path = realesrgan / "realesrgan/models/realesrgan_model.py"
    spec = importlib.util.spec_from_file_location("realesrgan_model", path)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    return model, importlib.import_module("basicsr.data.degradations")


def reference_kernels(degradations: ModuleType, options: dict[str, Any], count: int) -> dict[str, Tensor]:
    """Blur kernels of `count` images, drawn as in the reference's data set."""

    def pad(kernel: np.ndarray) -> Tensor:
        return torch.from_numpy(np.pad(kernel, (21 - len(kernel)) // 2)).float()

    def draw(end: str) -> Tensor:
        size = 2 * np.random.randint(3, 11) + 1
        if np.random.uniform() < options[f"sinc_prob{end}"]:
            cutoff = np.random.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi)
            return pad(degradations.circular_lowpass_kernel(cutoff, size))
        names = ("kernel_list", "kernel_prob", "blur_sigma", "blur_sigma", "betag_range", "betap_range")
        families, probabilities, sigma_x, sigma_y, betag, betap = (options[name + end] for name in names)
        angles = [-math.pi, math.pi]
        arguments = (families, probabilities, size, sigma_x, sigma_y, angles, betag, betap)
        return pad(degradations.random_mixed_kernels(*arguments))

    def sinc() -> Tensor:
        if np.random.uniform() >= options["final_sinc_prob"]:
            return pad(np.ones((1, 1)))
        cutoff = np.random.uniform(np.pi / 3, np.pi)
        return pad(degradations.circular_lowpass_kernel(cutoff, 2 * np.random.randint(3, 11) + 1))

    draws = {"kernel1": lambda: draw(""), "kernel2": lambda: draw("2"), "sinc_kernel": sinc}
    return {name: torch.stack([one() for _ in range(count)]) for name, one in draws.items()}


def reference(realesrgan: Path, basicsr: Path, hr: Tensor, sharpen: bool) -> Callable[[int], Tensor]:
    """A function that degrades `hr` with the reference, given the epoch."""
    module, degradations = reference_modules(realesrgan, basicsr)
    options = yaml.safe_load((realesrgan / "options/train_realesrgan_x4plus.yml").read_text())

    # An instance without the constructor, which would build networks.
    model = module.RealESRGANModel.__new__(module.RealESRGANModel)
    model.opt, model.is_train, model.device = {**options, "gt_size": hr.shape[-1]}, True, hr.device
    model._dequeue_and_enqueue = lambda: None
    jpeger = module.DiffJPEG(differentiable=False).to(hr.device)
    model.jpeger = lambda image, quality: jpeger(image, quality=quality).contiguous()  # torch 2.13 needs it for `view`
    sharpener = module.USMSharp().to(hr.device)
    kernels = [reference_kernels(degradations, options["datasets"]["train"], len(hr)) for _ in range(16)]

    def degrade(epoch: int) -> Tensor:
        sharp = sharpener(hr) if sharpen else hr
        model.usm_sharpener = lambda gt: sharp
        model.feed_data({"gt": hr, **kernels[epoch % len(kernels)]})
        return model.lq

    return degrade


def ours(hr: Tensor, sharpen: bool) -> Callable[[int], Tensor]:
    """A function that degrades `hr` with this project, given the epoch."""
    degradation = RealESRGAN(gt_usm=sharpen)
    keys = [f"image/{i}" for i in range(len(hr))]

    def degrade(epoch: int) -> Tensor:
        with torch.no_grad():
            return degradation(degradation.target(hr), keys=keys, epoch=epoch, seed=0)

    return degrade


def seconds(degrade: Callable[[int], Tensor], epoch: int) -> float:
    """Elapsed seconds of one batch."""
    start = time.perf_counter()
    lr = degrade(epoch)
    if lr.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare_jpeg(reference_jpeg: Callable[..., Tensor], hr: Tensor) -> None:
    """Prints, for each JPEG implementation, its mean distance to libjpeg in grey levels and the time of one image."""

    def libjpeg(quality: int) -> Tensor:
        buffer = io.BytesIO()
        Image.fromarray(to_uint8(hr[0]).permute(1, 2, 0).cpu().numpy()).save(buffer, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).to(hr) / 255

    one = hr[:1]
    coders: dict[str, Callable[[int], Tensor]] = {
        "reference": lambda quality: reference_jpeg(one, quality=hr.new_tensor([float(quality)])),
        "kornia": lambda quality: jpeg_codec_differentiable(one, hr.new_tensor([float(quality)])),
        "ours": lambda quality: compress(ImageBatch.from_tensor(one), [{"quality": quality}]).pixels,
    }
    for name, coder in coders.items():
        with torch.no_grad():
            errors = [float((coder(q)[0] - libjpeg(q)).abs().mean() * 255) for q in QUALITIES]
            best = min(seconds(lambda _: coder(50), 0) for _ in range(20))
        distances = ", ".join(f"{error:.2f} at {quality}" for quality, error in zip(QUALITIES, errors, strict=True))
        print(f"JPEG {name:10s} {distances}; {1000 * best:.1f} ms")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--realesrgan", type=Path, required=True, help="a checkout of xinntao/Real-ESRGAN")
    parser.add_argument("--basicsr", type=Path, required=True, help="a checkout of XPixelGroup/BasicSR")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--unsharpened", action="store_true", help="leave the sharpening of targets out")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    hr = photographs(arguments.batch, arguments.size).to(arguments.device)
    sharpen = not arguments.unsharpened
    contenders = {
        "reference": reference(arguments.realesrgan, arguments.basicsr, hr, sharpen),
        "ours": ours(hr, sharpen),
    }

    spent: dict[str, list[float]] = {name: [] for name in contenders}
    print(f"load {os.getloadavg()[0]:.1f}, {arguments.threads} threads, {arguments.batch} x {arguments.size} -> x4")
    for epoch in range(arguments.rounds + 2):
        for name, degrade in contenders.items():
            spent[name].append(seconds(degrade, epoch))

    for name, times in spent.items():
        kept = times[2:]  # the first two rounds warm up
        rate = arguments.batch * len(kept) / sum(kept)
        middle, best = arguments.batch / statistics.median(kept), arguments.batch / min(kept)
        print(f"{name:10s} {rate:7.1f} images/s in all, {middle:7.1f} in the median round, {best:7.1f} in the best")

    compare_jpeg(sys.modules["basicsr.utils"].DiffJPEG(differentiable=False).to(hr.device), hr)
    print(f"ours / reference {sum(spent['reference'][2:]) / sum(spent['ours'][2:]):.1f}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
