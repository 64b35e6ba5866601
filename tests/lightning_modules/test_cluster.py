"""What a scheduler says of a job, and the end of its processes."""

import time
from pathlib import Path

from torch import distributed

from lightning_modules.cluster import leave


def threads() -> set[str]:
    return {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}


def test_no_thread_of_gloo_outlives_leaving(tmp_path: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    until = time.monotonic() + 30
    while "pt_gloo_runloop" not in threads():  # a thread names itself once it runs
        assert time.monotonic() < until
        time.sleep(0.01)
    leave()
    assert "pt_gloo_runloop" not in threads()


def test_a_process_alone_has_nothing_to_leave() -> None:
    leave()
    assert not distributed.is_initialized()
