"""Memory that is freed stays with the process while it trains, and only then."""

import subprocess
import sys

import pytest

from recur.training import allocator

FAULTS = """
import resource, sys, torch
from recur.training.allocator import keeping_freed_memory

def faults(count=12_000_000):  # 48 MB: more than the largest block that glibc would keep by itself
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with keeping_freed_memory() as kept:
    for _ in range(60):  # until the heap has a hole of the size
        torch.ones(12_000_000)
    inside = faults()
after = faults()
faults(2_000_000)
print(kept, inside, after, faults(2_000_000))
"""


@pytest.mark.slow
@pytest.mark.skipif(allocator._glibc() is None, reason="needs glibc")
def test_a_block_is_kept_while_it_trains_and_given_back_after(monkeypatch):
    for name in allocator._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    kept, inside, after, smaller = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True
    ).stdout.split()
    assert kept == "True"
    assert int(inside) < 100, "each block was mapped anew"
    assert int(after) > 10 * int(inside), "the C library was left as it was set"
    assert int(smaller) < 100, "what it kept by itself before it does not keep now"


@pytest.mark.parametrize("name", allocator._OWN_SETTINGS)
def test_settings_of_the_environment_stay(name, monkeypatch):
    monkeypatch.setenv(name, "0")
    with allocator.keeping_freed_memory() as kept:
        assert not kept


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "_glibc", lambda: None)
    with allocator.keeping_freed_memory() as kept:
        assert not kept
