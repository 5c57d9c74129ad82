"""Which samples a step takes, and where they are read from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tnt.cli.data import Images, TrainingOrder, evaluation_order, open_dataset
from tnt.cli.options import TrainOptions
from tnt.cli.parallel import World
from tnt.cli.transforms import training_transform

CONFIG = {
    "input_size": (3, 32, 32),
    "interpolation": "bicubic",
    "mean": (0.5,) * 3,
    "std": (0.5,) * 3,
}


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, torch.device("cpu"))


def steps_of(size: int, repeats: int, start: tuple[int, int] = (1, 0)) -> list[list[list]]:
    """The keys of every step of an epoch over 50 samples, from all of `size` processes."""
    orders = [TrainingOrder(range(50), 12, 2, repeats, 0, world(r, size)) for r in range(size)]
    per_process = []
    for order in orders:
        order.start_at(*start)
        per_process.append(list(order))
        assert len(per_process[-1]) == len(order)
    micros = 6 // size
    return [
        [per_process[r][step * micros + m] for m in range(micros) for r in range(size)]
        for step in range(len(per_process[0]) // micros)
    ]


@pytest.mark.parametrize("repeats", [0, 3])
def test_every_number_of_processes_takes_the_same_micro_batches(repeats: int) -> None:
    one = steps_of(1, repeats)
    assert len(one) == 50 // 12
    for size in (2, 3, 6):
        assert steps_of(size, repeats) == one


def test_an_epoch_can_begin_at_any_step() -> None:
    whole = steps_of(2, 3)
    for step in range(len(whole) + 1):
        assert steps_of(2, 3, (1, step)) == whole[step:]


def test_epochs_differ_and_no_two_draws_are_the_same() -> None:
    keys = [
        key
        for epoch in range(3)
        for step in steps_of(1, 3, (epoch, 0))
        for batch in step
        for key in batch
    ]
    assert len({draw for _, draw in keys}) == len(keys)
    first, second = (steps_of(1, 3, (epoch, 0)) for epoch in (0, 1))
    assert [key[0] for key in first[0][0]] != [key[0] for key in second[0][0]]


def test_repeated_copies_of_an_image_share_a_step_but_no_micro_batch() -> None:
    for step in steps_of(1, 3):
        indices = [index for batch in step for index, _ in batch]
        assert len(set(indices)) in (4, 5)  # 12 places for groups of three
        for batch in step:
            assert len({index for index, _ in batch}) == len(batch)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluation_takes_each_sample_once_and_pads_evenly(size: int) -> None:
    batches = [evaluation_order(10, 2, world(rank, size)) for rank in range(size)]
    assert len({len(own) for own in batches}) == 1
    indices = sorted(index for own in batches for batch in own for index, _ in batch)
    assert indices[:10] == list(range(10))
    assert len(indices) % size == 0


def test_augmentation_depends_on_the_draw_and_on_nothing_else(photos: Path) -> None:
    options = TrainOptions(data=str(photos))
    source = open_dataset(options, "train")
    images = Images(source, training_transform(options, CONFIG), 3, seed=5)
    first = [images[0, draw][0] for draw in range(4)]
    torch.rand(3)
    again = [images[0, draw][0] for draw in reversed(range(4))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not torch.equal(first[0], first[1])
    other = Images(source, training_transform(options, CONFIG), 3, seed=6)
    assert not torch.equal(first[0], other[0, 0][0])


def test_the_strongest_augmentation_runs(photos: Path) -> None:
    """RandAugment at its limit posterises to 0 bits, which Pillow refuses."""
    options = TrainOptions(data=str(photos), auto_augment="rand-m10-n15-inc1")
    images = Images(open_dataset(options, "train"), training_transform(options, CONFIG), 3)
    assert images[0, 0][0].shape == (3, 32, 32)
