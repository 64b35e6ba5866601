"""What an image costs: evaluations of the network, time, operations and memory."""

import resource
from collections.abc import Mapping
from contextlib import ExitStack
from statistics import fmean
from time import perf_counter
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.metrics.score import Loadable


class ImageCost(NamedTuple):
    """What one image cost; in a batch of several, its share.

    Attributes:
        evaluations: Calls of the network; with tiles each tile is one.
        seconds: Time to enlarge it; None for the first batch, which warms up.
        flops: Floating-point operations, counted for the first batch only; None otherwise.
    """

    evaluations: float
    seconds: float | None
    flops: float | None


class Meter:
    """Measures the batches of a test, from `start` to `stop`.

    The first batch is the warm-up: its operations are counted instead of its time.

    Args:
        method: The method. The `network` of it and of the methods inside it is counted.
        device: Where it runs.
        count: Count the operations of the first batch.
    """

    def __init__(self, method: nn.Module, device: torch.device, count: bool = True) -> None:
        self.device = device
        methods = [module for module in method.modules() if isinstance(module, LightningModule)]
        found = [getattr(each, "network", None) for each in methods]
        networks = [network for network in found if isinstance(network, nn.Module)]
        # The operations of compiled networks cannot be seen.
        self._countable = count and not any(getattr(network, "_compiled_call_impl", None) for network in networks)
        self._hooks = [network.register_forward_pre_hook(self._called) for network in networks]
        self._open = ExitStack()
        self._warm, self._rows, self._began = False, 0, 0.0
        self._counter: FlopCounterMode | None = None

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _called(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._rows += len(inputs[0])

    def start(self) -> None:
        """Before a batch is enlarged."""
        self._rows = 0
        if not self._warm and self._countable:
            self._counter = self._open.enter_context(FlopCounterMode(display=False))
        self._wait()
        self._began = perf_counter()

    def stop(self, images: int) -> ImageCost:
        """After a batch of `images` has been enlarged; the cost of each."""
        self._wait()
        seconds = (perf_counter() - self._began) / images if self._warm else None
        self._open.close()
        flops = None if self._counter is None else self._counter.get_total_flops() / images
        self._warm, self._counter = True, None
        return ImageCost(self._rows / images, seconds, flops)

    def close(self) -> None:
        """Leaves the networks as they were."""
        self._open.close()
        for hook in self._hooks:
            hook.remove()

    def peak_memory(self) -> dict[str, Any]:
        """See the function of this name."""
        return peak_memory(self.device)

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def peak_memory(device: torch.device) -> dict[str, Any]:
    """The most memory that was held, in MiB, and what of."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        return {"peak_memory_mib": most / 2**20, "memory_of": "GPU, tensors"}
    return {
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "memory_of": "process, from its start",
    }


def parameters(method: nn.Module) -> dict[str, int]:
    """Numbers in a method's weights, all and those that training changes, without those of scores inside it."""
    scores = {id(each) for module in method.modules() if isinstance(module, Loadable) for each in module.parameters()}
    own = [each for each in method.parameters() if id(each) not in scores]
    return {
        "parameters": sum(each.numel() for each in own),
        "trained_parameters": sum(each.numel() for each in own if each.requires_grad),
    }


def summary(
    costs: Mapping[str, ImageCost], pixels: Mapping[str, int]
) -> tuple[dict[str, float | str | None], dict[str, float | int | None]]:
    """What a test states of its images' cost.

    Args:
        costs: By image, in the order of keys.
        pixels: Of each enlarged image.

    Returns:
        What is the same each time (`evaluations` of an image, the mean; `flops` of the first image that has them, and
        that image), and the times.
    """
    counted = next((key for key, cost in costs.items() if cost.flops is not None), None)
    timed = {key: cost.seconds for key, cost in costs.items() if cost.seconds is not None}
    seconds = sum(timed.values())
    fixed = {
        "evaluations": fmean(cost.evaluations for cost in costs.values()),
        "flops": None if counted is None else costs[counted].flops,
        "flops_image": counted,
        "flops_pixels": None if counted is None else pixels[counted],
    }

    times: dict[str, float | int | None] = {
        "seconds_per_image": seconds / len(timed) if timed else None,
        "megapixels_per_second": sum(pixels[key] for key in timed) / 1e6 / seconds if seconds else None,
        "timed_images": len(timed),
    }
    return fixed, times
