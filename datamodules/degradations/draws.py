"""Single draws from a generator, and checks of their parameters."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    """A number between two limits."""
    return limits[0] + (limits[1] - limits[0]) * rng.random()


def choose(rng: np.random.Generator, items: Sequence[Item], probabilities: Sequence[float]) -> Item:
    """One of `items`, by `probabilities` of sum 1."""
    rest = rng.random()
    for item, probability in zip(items, probabilities, strict=True):
        rest -= probability
        if rest < 0:
            return item
    return items[-1]


def shuffled(rng: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """The items in a random order, all orders equally likely."""
    return [items[i] for i in np.argsort([rng.random() for _ in items])]


def check_range(key: str, limits: Sequence[float], least: float, most: float = math.inf) -> None:
    """Raises a ValueError that names `key` unless `least <= low <= high <= most`."""
    if len(limits) != 2 or not least <= limits[0] <= limits[1] <= most:
        raise ValueError(f"{key}: expected a smallest and a largest value within [{least}, {most}], got {list(limits)}")


def check_probabilities(key: str, probabilities: Sequence[float], count: int) -> None:
    """Raises a ValueError that names `key` unless these are `count` numbers from 0 to 1 of sum 1."""
    if len(probabilities) != count or not all(0 <= p <= 1 for p in probabilities) or abs(sum(probabilities) - 1) > 1e-6:
        raise ValueError(f"{key}: expected {count} probabilities of sum 1, got {list(probabilities)}")


def check_probability(key: str, probability: float) -> None:
    """Raises a ValueError that names `key` unless this is a number from 0 to 1."""
    if not 0 <= probability <= 1:
        raise ValueError(f"{key}: expected a probability from 0 to 1, got {probability}")
