"""How a run's checkpoints come to the disk and back: whole, and with their checksums compared."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from lightning_modules.checkpoint import read_checkpoint, save


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target and then replaces it; reads it without executing anything stored in it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes one checkpoint.

        Raises:
            OSError: it cannot be written; the message names it, and the one before is untouched.
        """
        save(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads one checkpoint to the CPU.

        Raises:
            CheckpointError: it is absent, damaged, or holds more than tensors and plain values.
        """
        return read_checkpoint(path)
