"""Random numbers that do not depend on the order of work: seeds that follow from names."""

import hashlib
import os


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that depends on `parts` alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def global_seed() -> int:
    """What `seed_everything` was called with; 0 where it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
