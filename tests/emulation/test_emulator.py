"""The emulator itself: it stops what a GPU would let pass or hang on."""

from __future__ import annotations

from types import ModuleType

import pytest

MISUSES = {
    "divergent shuffle": "different collectives",
    "shuffles with different masks": "different collectives",
    "barrier in one warp": "some warps wait at a barrier",
    "barrier in half a warp": "different collectives",
    "warp id in half a warp": "different collectives",
    "misaligned vector load": "misaligned access",
    "read past shared memory": "access fault at address",
    "operand that is no tf32 number": "not a tf32 number",
}


def test_every_misuse_is_listed(kernels: ModuleType) -> None:
    assert sorted(MISUSES) == kernels.misuses()


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_stopped(kernels: ModuleType, name: str) -> None:
    with pytest.raises(kernels.Fault, match=MISUSES[name]):
        kernels.run_misuse(name)


def test_nothing_is_within_reach_of_a_wrong_index(kernels: ModuleType) -> None:
    assert kernels.neighbours(4 * 2**31) == []
    assert kernels.neighbours(2**46)


@pytest.mark.parametrize("reversed_order", [False, True])
@pytest.mark.parametrize("warps", [1, 2, 8])
def test_barrier_orders_shared_memory(
    kernels: ModuleType, warps: int, reversed_order: bool
) -> None:
    assert kernels.shared_memory_works(warps, reversed_order)
