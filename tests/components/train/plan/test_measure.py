import mmap

from components.train.plan.measure import MemoryWatch, status_bytes

MIB = 1 << 20


def touch(size_bytes):
    """Memory that is new to the process and goes back at once: the heap may hold what earlier tests let go."""
    with mmap.mmap(-1, size_bytes) as block:
        block.write(b"x" * size_bytes)


def test_measures_a_peak_that_is_gone_again():
    watch = MemoryWatch.start()
    touch(64 * MIB)
    assert 60 * MIB < watch.peak_bytes() < 200 * MIB  # the bytes to write may be new memory too


def test_an_earlier_peak_does_not_count():
    touch(64 * MIB)
    assert MemoryWatch.start().peak_bytes() < 10 * MIB


def test_what_the_kernel_does_not_know_is_0():
    assert status_bytes("NoSuchLine") == 0
