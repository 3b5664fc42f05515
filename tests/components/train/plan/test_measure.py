import torch

from components.train.plan.measure import MemoryWatch, status_bytes

MIB = 1 << 20


def test_measures_a_peak_that_is_gone_again():
    watch = MemoryWatch.start()
    block = torch.ones(16 * MIB)  # 64 MiB
    del block
    assert 60 * MIB < watch.peak_bytes() < 90 * MIB


def test_an_earlier_peak_does_not_count():
    del_soon = torch.ones(16 * MIB)
    del del_soon
    assert MemoryWatch.start().peak_bytes() < 10 * MIB


def test_what_the_kernel_does_not_know_is_0():
    assert status_bytes("NoSuchLine") == 0
