"""Work on the CPU that is divided between threads by whole images."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

MOST_THREADS = 4  # more would mostly wait for Python's lock


def map_in_threads(work: Callable[[int], Tensor], count: int) -> Tensor:
    """`work(0)` to `work(count - 1)`, concatenated; each call runs in one thread, without gradients.

    Degradations are many small operations: if each were split between threads, each would wait for the slowest thread.
    Threads that take whole images never wait, which matters most where other programs use the same cores, and one image
    at a time fits into the cache.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, and of those that it starts
    try:
        with ThreadPoolExecutor(min(threads, MOST_THREADS)) as pool:
            return torch.cat([*pool.map(torch.no_grad()(work), range(count))])
    finally:
        torch.set_num_threads(threads)
