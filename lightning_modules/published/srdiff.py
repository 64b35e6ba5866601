"""SRDiff's weights as its public code stores them: network, encoder and schedule in one state dict."""

from collections.abc import Mapping

from torch import Tensor

from lightning_modules.checkpoint import rename_prefixes
from lightning_modules.published.schedule_table import without_table
from lightning_modules.srdiff import SRDiff


def adapt(model: SRDiff, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict: `denoise_fn.*` becomes `network.*`, and `rrdb.*` becomes `encoder.*`.

    Raises:
        ValueError: the file was made with another schedule than the configured one.
    """
    return rename_prefixes(without_table(state, model.process), {"denoise_fn.": "network.", "rrdb.": "encoder."})
