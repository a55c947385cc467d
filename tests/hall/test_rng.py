"""Randomness as a function of position."""

from __future__ import annotations

import torch

from unmem.rng import derive, stream, torch_stream, uniform_of


def test_places_are_independent_of_what_was_drawn_before() -> None:
    first = stream(1, "a", 2).random(4)
    stream(1, "b").random(100)
    assert (stream(1, "a", 2).random(4) == first).all()
    a = torch.randn(3, generator=torch_stream(1, "a"))
    assert torch.equal(a, torch.randn(3, generator=torch_stream(1, "a")))


def test_near_places_differ() -> None:
    places = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a1"), (0, "a", "1"), (10, "a"), (1, "0", "a")]
    assert len({derive(seed, *names) for seed, *names in places}) == len(places)
    assert all(0 <= derive(seed, *names) < 2**63 for seed, *names in places)


def test_uniform_of_is_uniform() -> None:
    values = [uniform_of(0, f"id{i}", salt="split") for i in range(4000)]
    assert all(0 <= value < 1 for value in values)
    assert abs(sum(values) / 4000 - 0.5) < 0.02
    assert values[:3] != [uniform_of(0, f"id{i}", salt="planted") for i in range(3)]
