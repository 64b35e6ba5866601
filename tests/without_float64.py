"""A stand-in for an accelerator without float64, such as Apple's: a device of its own, whose work the CPU does.

PyTorch's device for backends from elsewhere is registered under the name `standin`. Its tensors hold one of the CPU,
and a dispatch mode runs every operation on that. As on a real accelerator, tensors of two devices do not meet (but for
numbers without dimensions and for indices), and a float64 tensor cannot come to be on it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.backend_registration as registration
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lightning_modules import float64

NAME = "standin"
COPIES = {torch.ops.aten._to_copy, torch.ops.aten.copy_}  # what may take a tensor of another device
INDEXED = {torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten.index_put, torch.ops.aten._index_put_impl_}


class OnAccelerator(Tensor):
    """A tensor that says to be on the accelerator."""

    @staticmethod
    def __new__(cls: type, held: Tensor) -> "OnAccelerator":
        if held.dtype == torch.float64:
            raise TypeError(f"a float64 tensor {tuple(held.shape)} was to be on an accelerator that has no float64")
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.size(), device=torch.device(NAME, 0), **layout)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


def dispatched(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The operation on the tensors that are held, with its results where they belong."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = any(isinstance(each, OnAccelerator) for each in tensors)
    device = kwargs.get("device")
    if there and func.overloadpacket not in COPIES:
        allowed = args[1] if func.overloadpacket in INDEXED else ()
        indices = {id(each) for each in tree_leaves(allowed)}
        for each in tensors:
            if not isinstance(each, OnAccelerator) and each.dim() > 0 and id(each) not in indices:
                raise RuntimeError(f"{func}: a tensor {tuple(each.shape)} of the CPU meets one of {NAME}")

    results_there = there if device is None else torch.device(device).type == NAME
    if func.overloadpacket is torch.ops.aten.copy_:
        results_there = isinstance(args[0], OnAccelerator)
    on_cpu = {**kwargs, "device": torch.device("cpu")} if device is not None else dict(kwargs)
    results = func(*tree_map(held, args), **tree_map(held, on_cpu))
    known = {id(held(each)): each for each in tensors}  # operations in place return what they were given

    def placed(result: Any) -> Any:
        if not isinstance(result, Tensor):
            return result
        if id(result) in known:
            return known[id(result)]
        return OnAccelerator(result) if results_there else result

    return tree_map(placed, results)


def held(value: Any) -> Any:
    """The tensor of the CPU behind one of the accelerator; anything else as it is."""
    return value.held if isinstance(value, OnAccelerator) else value


class Operations(TorchDispatchMode):
    """Sees the operations that only name the device, such as `torch.zeros(2, device=...)`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


class Constructors(TorchFunctionMode):
    """What PyTorch builds before any dispatch, such as `torch.tensor(..., device=...)`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and wanted(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(NAME)
        if func is Tensor.new_tensor and isinstance(args[0], OnAccelerator) and kwargs.get("device") is None:
            return torch.tensor(args[1], **{"dtype": args[0].dtype, **kwargs}).to(NAME)
        if getattr(func, "__name__", "") == "gru" and isinstance(args[0], OnAccelerator):
            return gru(*args[:3])
        return func(*map(held, args), **kwargs) if func is Tensor.tolist else func(*args, **kwargs)


def gru(x: Tensor, hidden: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A GRU of one layer on `[T,B,F]`, for which PyTorch would want a fused kernel of the accelerator."""
    of_x, of_hidden, bias_x, bias_hidden = weights
    state, states = hidden[0], []
    for step in x:
        reset_x, update_x, new_x = torch.nn.functional.linear(step, of_x, bias_x).chunk(3, dim=1)
        reset_h, update_h, new_h = torch.nn.functional.linear(state, of_hidden, bias_hidden).chunk(3, dim=1)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        state = new + torch.sigmoid(update_x + update_h) * (state - new)
        states.append(state)
    return torch.stack(states), state[None]


def wanted(device: Any) -> bool:
    """Whether a device is the stand-in."""
    return device is not None and torch.device(device).type == NAME


class Generator(torch.Generator):
    """Random numbers of the accelerator are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        return super().__new__(cls, "cpu" if wanted(device) else device)


class Module(registration._DummyBackendModule):
    """What `torch.standin` has."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None: ...

    def manual_seed_all(self, seed: int) -> None: ...

    def synchronize(self, device: Any = None) -> None: ...


class StandIn(Accelerator):
    """For Lightning."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


def empty_strided(size: Any, stride: Any, *, dtype: torch.dtype | None = None, **others: Any) -> Tensor:
    """A tensor of the accelerator without values."""
    return OnAccelerator(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """`target`, which then holds the values of `source`."""
    held(target).copy_(held(source))
    return target


@contextmanager
def accelerator() -> Iterator[None]:
    """The stand-in is there. It stays registered in this process, which is best a forked one."""
    registration._setup_privateuseone_for_python_backend(NAME, Module())
    kernels = torch.library.Library("aten", "IMPL")  # of what PyTorch allocates by itself
    kernels.impl("empty_strided", empty_strided, "PrivateUse1")
    kernels.impl("_copy_from", copy_from, "PrivateUse1")
    AcceleratorRegistry.register(NAME, StandIn)
    float64.WITHOUT.add(NAME)
    torch.Generator = Generator  # type: ignore[misc]
    with Constructors(), Operations():
        yield
