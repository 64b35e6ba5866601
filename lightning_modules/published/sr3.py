"""SR3's weights as its widely used public implementation stores them: `I<step>_E<epoch>_gen.pth`."""

from collections.abc import Mapping

from torch import Tensor

from lightning_modules.checkpoint import rename_prefixes
from lightning_modules.published.schedule_table import without_table
from lightning_modules.sr3 import SR3


def adapt(model: SR3, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict: `denoise_fn.*` becomes `network.*`.

    Raises:
        ValueError: the file was made with another schedule than the configured one.
    """
    return rename_prefixes(without_table(state, model.process), {"denoise_fn.": "network."})
