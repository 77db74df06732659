"""Memory that is freed stays at hand while chunks go through, and is given back afterwards."""

import resource

import pytest

from toy_memory import resident
from twinsight.engine import memory
from twinsight.engine.memory import keeping_freed_memory


def faults(times):
    """Pages that the system had to clear for ``times`` blocks of 64 MiB one after another."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(64 * 2**20).find(b"1")
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


class Allocator:
    """Stands in for the C library and notes what it is told."""

    def __init__(self):
        self.told = []

    def mallopt(self, name, value):
        self.told.append((name, value))

    def malloc_trim(self, pad):
        self.told.append("trim")


@pytest.fixture
def allocator(monkeypatch):
    allocator = Allocator()
    monkeypatch.setattr(memory, "_glibc", lambda: allocator)
    return allocator


@pytest.mark.skipif(memory._glibc() is None, reason="another C library")
def test_freed_memory_is_used_again_and_given_back():
    before, held = faults(8), resident("VmRSS")
    with keeping_freed_memory():
        within = faults(8)
    assert within < before / 2
    assert resident("VmRSS") - held < 16 * 2**20
    assert faults(8) > before / 2


def test_blocks_within_blocks_change_nothing(allocator):
    with keeping_freed_memory():
        once = list(allocator.told)
        with keeping_freed_memory():
            pass
        assert allocator.told == once
    assert allocator.told[-1] == "trim"


def test_what_was_set_is_set_back_after_an_error(allocator):
    with pytest.raises(ValueError, match="broken"), keeping_freed_memory():
        raise ValueError("broken")
    limits, thresholds = allocator.told[-4], allocator.told[-3:-1]
    assert limits == (-4, 65536)
    assert thresholds == [(-3, 2**25), (-1, 2**26)]
    assert allocator.told[-1] == "trim"
    assert memory._inside == 0


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_an_allocator_that_the_environment_set_up_stays_as_it_is(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert memory._glibc.__wrapped__() is None
