"""Weights, gradients and optimizer state spread over all processes (FSDP2), for models that do not fit one device.

Each process holds a part of each tensor as a `DTensor`. In a training step the parts are collected block by block. For
validation, test and prediction they are collected once, since processes then evaluate the network differently often.
Checkpoints hold whole tensors: what was trained spread goes on, and is tested, on one process, and the other way round.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes.

    Weights of convolutions come in PyTorch's own memory format, which some GPUs run slower than channels_last.

    Args:
        smallest: Numbers in the smallest block that is collected by itself; smaller ones are collected at the beginning
            of a step, with what is in no block.
        options: Those of Lightning's strategy, such as `timeout` and `process_group_backend`.
    """

    def __init__(self, smallest: int = 1_000_000, **options: Any) -> None:
        super().__init__(save_distributed_checkpoint=False, **options)
        self.smallest = smallest

    # Checkpoints are read before the weights come to the device, and in whole, as under any other strategy.
    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True

    def setup_environment(self) -> None:
        """Joins the processes, all of which share the weights."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, parts: Mapping[nn.Module, tuple[str, ...]]) -> None:
        """Spreads modules over the processes.

        Args:
            parts: Each with its methods in which all of its weights are needed.
        """
        mesh = self.device_mesh["data_parallel"]
        for part, methods in parts.items():
            if isinstance(part, FSDPModule):
                continue
            part.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # the only one that FSDP2 knows
            for block in blocks(part, self.smallest):
                fully_shard(block, mesh=mesh)
            own = type(part)
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            made: Any = type(part)  # a class of FSDP2's making; checkpoints and results call it by its own name
            made.__module__, made.__qualname__, made.__name__ = own.__module__, own.__qualname__, own.__name__
            for method in methods:
                register_fsdp_forward_method(part, method)

    def spread(self) -> None:
        """Each process keeps its part alone."""
        for module in self._spread_modules():
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()

    def collect(self) -> None:
        """Each process holds all weights, until `spread`."""
        for module in self._spread_modules():
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()

    on_validation_start = on_test_start = on_predict_start = collect
    on_validation_end = on_test_end = on_predict_end = spread

    def _spread_modules(self) -> Iterator[FSDPModule]:
        assert self.lightning_module is not None
        yield from (module for module in self.lightning_module.modules() if isinstance(module, FSDPModule))

    def setup(self, trainer: Trainer) -> None:
        """Brings all to the device.

        Raises:
            ValueError: validation would make tensors that training cannot use.
        """
        if trainer.validate_loop.inference_mode:
            raise ValueError("weights spread over processes need --trainer.inference_mode false")
        super().setup(trainer)

    # Checkpoints.

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors, on every process."""
        assert self.lightning_module is not None
        return cast(dict[str, Any], whole(self.lightning_module.state_dict()))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole tensors, on every process."""
        return cast(dict[str, Any], whole(getattr(optimizer, "_optimizer", optimizer).state_dict()))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, on every process.

        Raises:
            OSError: it cannot be read.
            ValueError: it cannot be used.
        """
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this process's parts of the weights."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this process's parts of the optimizers' states."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                index: {name: like(value, parameters[index]) for name, value in values.items()}
                for index, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})


def blocks(module: nn.Module, smallest: int) -> Iterator[nn.Module]:
    """The parts of a network that run one after another: entries of lists of at least `smallest` numbers."""
    listed = isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.children():
        if listed and _is_block(child, smallest):
            yield child
        else:
            yield from blocks(child, smallest)


def _is_block(module: nn.Module, smallest: int) -> bool:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):  # which are not called
        return False
    return sum(parameter.numel() for parameter in module.parameters()) >= smallest


def whole(value: Any) -> Any:
    """A tensor, or a nest of dictionaries and lists with tensors, in whole; a call that all processes make."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {name: whole(each) for name, each in value.items()}
    return [whole(each) for each in value] if isinstance(value, list) else value


def like(value: Any, other: Tensor | None) -> Any:
    """This process's part of a tensor, where `other` is spread and of its shape; otherwise the value itself."""
    if not isinstance(other, DTensor) or not isinstance(value, Tensor) or value.shape != other.shape:
        return value
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
