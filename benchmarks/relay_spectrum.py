"""How much of each frequency of a photograph the noise of Relay Diffusion leaves, with and without block noise.

    python benchmarks/relay_spectrum.py [--size 256] [--patch 4] [--draws 64] [--out benchmarks/results]

The picture behind Relay Diffusion (Section 3 of arXiv:2309.03350): the same noise level on a larger image leaves a
higher signal-to-noise ratio at the frequencies that the small image has, too. Block noise alone takes that back; the
published process adds only a share of it to white noise. Bundled photographs are cropped to their centre. The small
image is the average of each patch, noised at its own size and enlarged by repeating pixels, which is the paper's
comparison: its frequencies beyond its own are of the repetition, and not shown. The power of a frequency is the mean
square of its coefficients in the orthonormal two-dimensional DCT-II, in which white noise of level sigma has the power
sigma^2, over rings of equal radius, images and channels.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.fft import dctn
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from datamodules.photos import bundled
from lightning_modules.diffusion.relay import RelayProcess, block_noise

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SIGMAS = (0.1, 0.3, 0.9)  # 0.9 is where the published second stage begins
SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the large image's highest frequency, in the table
LARGE, BLOCK, SMALL = "large, white noise", "large, white + 0.15 block noise, as published", "small, white noise"
ALONE = "large, block noise alone"


def photographs(size: int) -> Tensor:
    """The centres of the photographs, `[5,3,size,size]` in [-1, 1]."""
    centres = []
    for name in PHOTOGRAPHS:
        image = np.asarray(Image.open(bundled(name)).convert("RGB"))
        top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
        centres.append(torch.from_numpy(image[top : top + size, left : left + size] / 127.5 - 1.0))
    return torch.stack(centres).permute(0, 3, 1, 2).float()


def spectrum(images: Tensor) -> np.ndarray:
    """Power at each of `size - 1` radii above 0, averaged over images and channels; `images` are `[B,C,size,size]`."""
    power = (dctn(images.double().numpy(), axes=(-2, -1), norm="ortho") ** 2).mean(axis=(0, 1))
    rows, columns = np.indices(power.shape)
    radius = np.round(np.hypot(rows, columns)).astype(int)
    rings = np.bincount(radius.ravel(), power.ravel()) / np.bincount(radius.ravel())
    return rings[1 : len(power)]


def enlarge(small: Tensor, patch: int) -> Tensor:
    """Each pixel repeated over a patch."""
    return interpolate(small, scale_factor=float(patch), mode="nearest")


def mean_spectrum(draw: Callable[[], Tensor], draws: int) -> np.ndarray:
    """The spectrum of noise, over several draws."""
    return np.mean([spectrum(draw()) for _ in range(draws)], axis=0)


def powers(size: int, patch: int, draws: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Spectra of the signal and of noise of level 1, by name."""
    hr = photographs(size)
    signals = {LARGE: spectrum(hr), SMALL: spectrum(enlarge(avg_pool2d(hr, patch), patch))}
    signals[BLOCK] = signals[ALONE] = signals[LARGE]

    white, block = RelayProcess(patch, block_scale=0.0), RelayProcess(patch)
    like, small = torch.empty(1, 3, size, size), torch.empty(1, 3, size // patch, size // patch)
    noises = {
        LARGE: mean_spectrum(lambda: white.noise(like), draws),
        BLOCK: mean_spectrum(lambda: block.noise(like), draws),
        ALONE: mean_spectrum(lambda: block_noise(torch.randn_like(like), patch), draws),
        SMALL: mean_spectrum(lambda: enlarge(torch.randn_like(small), patch), draws),
    }
    return signals, noises


def blurred(size: int, patch: int) -> dict[float, np.ndarray]:
    """Spectra of the signal that the process leaves at each level: blurred inside of patches."""
    process, hr = RelayProcess(patch), photographs(size)
    normal = torch.distributions.Normal(0.0, 1.0)
    found = {}
    for sigma in SIGMAS:
        t = normal.cdf((torch.tensor(sigma).log() - process.p_mean) / process.p_std).double() / process.prob_length
        found[sigma] = spectrum(process.mean(x0=hr, anchor=hr, t=t.expand(len(hr))))
    return found


def plot(size: int, patch: int, signals: dict[str, np.ndarray], noises: dict[str, np.ndarray], path: Path) -> None:
    """Power of signal and noise, then their ratio at each level."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2))
    frequency, colours = np.arange(1, size) / size, {LARGE: "C0", BLOCK: "C1", ALONE: "C3", SMALL: "C2"}
    own = frequency < 1 / patch  # beyond, the small image has nothing of its own

    panels[0].loglog(frequency, signals[LARGE], color="black", label="photographs")
    for style, (sigma, power) in zip((":", "-.", "--"), blurred(size, patch).items(), strict=True):
        panels[0].loglog(frequency, power, style, color="grey", label=f"blurred as at sigma {sigma:g}")
    for name, power in noises.items():
        shown = own if name == SMALL else np.ones_like(own)
        panels[0].loglog(frequency[shown], SIGMAS[-1] ** 2 * power[shown], color=colours[name], label=f"noise: {name}")
    panels[0].set(title=f"power, noise at sigma {SIGMAS[-1]:g}", ylabel="mean squared DCT coefficient")

    for style, sigma in zip((":", "-.", "-"), SIGMAS, strict=True):
        for name in noises:
            ratio = 10 * np.log10(signals[name] / (sigma**2 * noises[name]))
            shown, label = (own if name == SMALL else np.ones_like(own)), name if sigma == SIGMAS[-1] else None
            panels[1].semilogx(frequency[shown], ratio[shown], style, color=colours[name], label=label)
    panels[1].set(title=f"signal to noise; sigma {', '.join(f'{sigma:g}' for sigma in SIGMAS)} from top", ylabel="dB")
    for panel in panels:
        panel.axvline(1 / patch, color="grey", linewidth=0.8)
        panel.set_xlabel("frequency, as a share of the large image's highest")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def table(size: int, patch: int, signals: dict[str, np.ndarray], noises: dict[str, np.ndarray]) -> str:
    """Signal-to-noise ratios at the level where the second stage begins, in dB."""
    ends = [max(1, round(share * size)) for share in SHARES]
    lines = ["| noise | " + " | ".join(f"1/{size // end}" for end in ends) + " |", "|---" * (len(ends) + 1) + "|"]
    for name in noises:
        ratios = 10 * np.log10(signals[name] / (SIGMAS[-1] ** 2 * noises[name]))
        around = [ratios[max(0, round(end * 0.8) - 1) : round(end * 1.2)].mean() for end in ends]
        last = 1 / patch if name == SMALL else 1.0
        cells = [f"{ratio:.1f}" if share < last else "" for ratio, share in zip(around, SHARES, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--draws", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()

    torch.manual_seed(0)
    signals, noises = powers(given.size, given.patch, given.draws)
    rows = table(given.size, given.patch, signals, noises)
    print(rows)

    given.out.mkdir(parents=True, exist_ok=True)
    plot(given.size, given.patch, signals, noises, given.out / "relay_spectrum.png")
    about = (__doc__ or "").split("\n\n")[2].strip()
    (given.out / "relay_spectrum.md").write_text(
        f"# Signal and noise by frequency\n\n`python benchmarks/relay_spectrum.py`: {len(PHOTOGRAPHS)} photographs of "
        f"{given.size}x{given.size}, patches of {given.patch}x{given.patch}.\n\n{about}\n\n"
        f"Signal-to-noise ratio in dB at sigma {SIGMAS[-1]:g}, where sampling takes over, around a frequency (share of "
        f"the large image's highest):\n\n{rows}\n\n![power and signal-to-noise ratio](relay_spectrum.png)\n"
    )


if __name__ == "__main__":
    main()
