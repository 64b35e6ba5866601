"""Key names of BasicSR's RRDB network, under which Real-ESRGAN and RealESRNet are published."""

import re
from collections.abc import Mapping

from torch import Tensor

RULES = {
    r"body\.(\d+)\.rdb(\d)": r"RRDB_trunk.\1.RDB\2",
    "conv_body": "trunk_conv",
    r"conv_up(\d)": r"upconv\1",
    "conv_hr": "HRconv",
}


def rrdb(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` under the key names of `RRDBNet`; one that does not use BasicSR's names is returned unchanged."""
    if "conv_body.weight" not in state:
        return dict(state)

    renamed = {}
    for key, value in state.items():
        for theirs, ours in RULES.items():
            key = re.sub(f"^{theirs}\\.", f"{ours}.", key)
        renamed[key] = value
    return renamed
