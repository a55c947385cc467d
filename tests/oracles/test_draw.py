"""A step's draws: the same however slots are shared out, several an image, each with a flip of its own."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unmem.train.config import Train
from unmem.train.diffusion import Diffusion, make_scheduler, to_model
from unmem.train.draw import Draw, made_up
from unmem.train.imageset import ImageSet
from unmem.train.inputs import Pixels
from unmem.train.noise_levels import NoiseLevels

ALONE = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)
DIFFUSION = Diffusion.of(make_scheduler("cosine", "epsilon", 1000))


class Seen(nn.Module):
    """Predicts nothing, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Any:
        self.rows.append((x, t, class_labels))
        return SimpleNamespace(sample=torch.zeros_like(x))


def draw(data: ImageSet, size: int, multiplicity: int, **settings: Any) -> Draw:
    config = Train(images=1, **settings)
    rule: Any = SimpleNamespace(seed=4, multiplicity=multiplicity)
    positions = np.arange(size) % len(data)
    return Draw(data, positions, config, NoiseLevels.of(config, DIFFUSION), Pixels(10, "cpu"), rule, step=3)


@pytest.mark.parametrize("multiplicity", [1, 3])
def test_losses_do_not_depend_on_how_slots_are_shared_out(digits: ImageSet, multiplicity: int) -> None:
    size = 2 * Draw.BLOCK + 22
    whole = draw(digits, size, multiplicity, flip=True).losses(DIFFUSION, Seen(), ALONE, np.arange(size))
    assert whole.shape == (size,)
    for chunks in (np.array_split(np.arange(size), 7), [np.arange(size)[::-1][:5], np.array([], dtype=np.int64)]):
        again = draw(digits, size, multiplicity, flip=True)
        for slots in chunks:
            torch.testing.assert_close(again.losses(DIFFUSION, Seen(), ALONE, slots), whole[slots.copy()])


def test_an_images_draws_differ(digits: ImageSet) -> None:
    """Without noise (alpha_bar = 1) a row of the network is the image or its mirror image."""
    noiseless, seen, size, k = Diffusion(torch.ones(1000), "epsilon"), Seen(), 8, 5
    draw(digits, size, k, flip=True, label_dropout=0.5).losses(noiseless, seen, ALONE, np.arange(size))
    x, t, labels = (rows.view(size, k, *rows.shape[1:]) for rows in seen.rows[0])
    one = digits.take(np.arange(size))
    assert one.labels is not None
    mirrored = 0
    for i, pixels in enumerate(to_model(one.images())):
        as_is, mirror = ([torch.equal(row, image) for row in x[i]] for image in (pixels, pixels.flip(-1)))
        assert all(a or b for a, b in zip(as_is, mirror, strict=True))
        assert len(set(t[i].tolist())) > 1
        assert set(labels[i].tolist()) <= {10, int(one.labels[i])}
        mirrored += 0 < sum(mirror) < k
    assert mirrored > 0
    assert len({tuple(row) for row in (labels == 10).tolist()}) > 1


def test_made_up_images_are_none_of_the_data(digits: ImageSet) -> None:
    trial = made_up(digits, 100)
    assert (trial.shape, trial.label_names, len(trial)) == (digits.shape, digits.label_names, 64)
    assert not set(trial.ids) & set(digits.ids)
    assert len(made_up(digits, 5)) == 5
