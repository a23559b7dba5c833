"""The knapsack against enumeration, and its speed on a thousand products."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest

from hadamard_fx.cost_model import knapsack
from hadamard_fx.cost_model.knapsack import Choice, Option, Tie, solve


def problem(seed: int) -> tuple[list[list[Option]], list[Tie], float]:
    draw = random.Random(seed)
    sizes = [draw.randint(1, 3) for _ in range(draw.randint(1, 5))]
    items = [[Option(draw.random(), draw.randint(0, 9)) for _ in range(size)] for size in sizes]
    ties = []
    for _ in range(draw.randint(0, 5)):
        chosen = draw.sample(range(len(items)), min(len(items), draw.randint(1, 3)))
        members = tuple((item, draw.randrange(sizes[item])) for item in chosen)
        ties.append(Tie(members, draw.random() - 0.5, draw.randint(0, 3), draw.random() < 0.5))
    return items, ties, draw.choice([math.inf, float(draw.randint(0, 30))])


def price(items: list[list[Option]], ties: list[Tie], chosen: tuple[int, ...]) -> tuple[float, float]:
    """(price, weight), written out."""
    taken: list[Option | Tie] = [options[number] for options, number in zip(items, chosen, strict=True)]
    for tie in ties:
        hits = [chosen[item] == option for item, option in tie.members]
        if all(hits) if tie.every else any(hits):
            taken.append(tie)
    return sum(entry.price for entry in taken), sum(entry.weight for entry in taken)


@pytest.mark.parametrize("enumerated", [0, 2000], ids=["solver", "enumeration"])
@pytest.mark.parametrize("seed", range(60))
def test_the_choice_is_the_best_of_all(seed: int, enumerated: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "ENUMERATED", enumerated)
    items, ties, capacity = problem(seed)
    every = [price(items, ties, chosen) for chosen in itertools.product(*(range(len(options)) for options in items))]
    allowed = [cost for cost, weight in every if weight <= capacity]
    found = solve(items, ties, capacity)
    if not allowed:
        assert found is None
        return
    assert found is not None
    assert (found.price, found.weight) == pytest.approx(price(items, ties, found.options))
    assert found.price == pytest.approx(min(allowed), abs=1e-5)
    assert found.weight <= capacity + 1e-6


def test_no_products() -> None:
    assert solve([]) == Choice((), 0, 0)


def test_the_same_problem_has_the_same_answer() -> None:
    items, ties, _ = problem(3)
    assert len({solve(items, ties, 20.0) for _ in range(3)}) == 1


def layers(count: int) -> tuple[list[list[Option]], list[Tie]]:
    """As the chooser states layers: g_x, g_w with four schemes each, a forward; what is kept costs time to compress."""
    draw, items, ties = random.Random(0), list[list[Option]](), list[Tie]()
    for layer in range(count):
        scale = draw.uniform(0.5, 2)
        items.append([Option(scale * share) for share in (1, 0.8, 0.75, 0.7)])
        items.append([Option(scale * share) for share in (1, 1.1, 1.3, 0.98)])
        items.append([Option(scale)])
        x, w = 3 * layer, 3 * layer + 1
        for number, share in enumerate((1, 0.25, 0.125, 0.5)):
            ties.append(Tie(((w, number),), 0.05 * scale * (number > 0), scale * share))
        ties += [Tie(((x, i), (w, j)), -0.05 * scale, every=True) for i in (1, 2) for j in (1, 2)]
    return items, ties


def test_a_budget_over_a_thousand_products_takes_seconds_at_most() -> None:
    """The bar is one second (``benchmarks/choice.py`` measures it); a shared machine may be slow."""
    items, ties = layers(334)
    free = solve(items, ties)
    assert free is not None
    began = time.perf_counter()
    bound = solve(items, ties, free.weight * 0.5)
    spent = time.perf_counter() - began
    assert bound is not None and bound.weight <= free.weight * 0.5 and bound.price > free.price
    assert spent < 20
