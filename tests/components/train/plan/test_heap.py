import pytest

from components.train.plan.heap import MAPPED_FROM_BYTES, Event, Heap, Replay, training_bytes, validation_bytes

MIB = 1 << 20


def learnt_heap():
    """One that has given back a large block, so that smaller ones are no longer mapped."""
    heap = Heap()
    heap.allocate("large", MAPPED_FROM_BYTES - MIB)
    heap.free("large")
    return heap


def test_large_blocks_go_back_and_small_ones_stay():
    heap = learnt_heap()
    heap.allocate("mapped", MAPPED_FROM_BYTES)
    assert (heap.mapped >= MAPPED_FROM_BYTES, heap.end) == (True, 0)
    heap.free("mapped")
    assert heap.mapped == 0
    heap.allocate("small", MIB)
    heap.free("small")
    assert (heap.mapped, heap.end >= MIB) == (0, True)


def test_blocks_are_mapped_until_one_was_given_back():
    heap = Heap()
    for name in "ab":
        heap.allocate(name, MIB)
    assert heap.end == 0
    heap.free("a")
    heap.allocate("c", MIB // 2)
    assert heap.end >= MIB // 2


def test_a_hole_is_too_small_for_an_aligned_block_of_its_own_size():
    heap = learnt_heap()
    for name in "abc":
        heap.allocate(name, 4 * MIB)
    heap.free("b")
    end = heap.end
    heap.allocate("smaller", 3 * MIB)
    assert heap.end == end
    heap.allocate("same", 4 * MIB)
    assert heap.end > end


@pytest.mark.parametrize(("pin_every", "grows"), [(0, False), (1, True)])
def test_neighbours_become_one_hole_unless_something_stays_between(pin_every, grows):
    heap = learnt_heap()
    heap.pin_every = pin_every
    for name in "abc":
        heap.allocate(name, 4 * MIB)
    for name in "ab":
        heap.free(name)
    end = heap.end
    heap.allocate("both", 7 * MIB)
    assert (heap.end > end) == grows


def test_the_top_goes_back_when_it_is_large():
    heap = learnt_heap()
    for number in range(8):
        heap.allocate(number, 16 * MIB)
    for number in range(8):
        heap.free(number)
    assert heap.end < MIB < 128 * MIB < heap.peak_bytes


def step(*blocks, gradient=0):
    """Blocks that are made and freed, and a gradient."""
    made = [Event("made", number, size) for number, size in enumerate(blocks)]
    freed = [Event("freed", number) for number in range(len(blocks))]
    return [*made, *freed, Event("made", len(blocks), gradient), Event("gradient", len(blocks), gradient)]


def test_training_holds_gradients_and_moments():
    events = step(64 * MIB, gradient=40 * MIB)
    plain = training_bytes(events, Replay(moments=0))
    assert 64 * MIB <= plain < 66 * MIB
    # From the second step on the moments lie beside the activations.
    assert training_bytes(events, Replay(moments=2)) - plain == pytest.approx(80 * MIB, rel=0.01)


def test_gradients_of_the_micro_batch_before_lie_beside_the_activations():
    events = step(64 * MIB, gradient=40 * MIB)
    more = training_bytes(events, Replay(0, accumulation=2)) - training_bytes(events, Replay(0))
    assert more == pytest.approx(40 * MIB, rel=0.01)
    assert training_bytes(events, Replay(0, accumulation=2, keeps_gradients=False)) < 66 * MIB


def test_what_a_recomputed_forward_pass_frees_hardly_fits_again():
    layers = [event for number in range(40) for event in
              (Event("made", number, 8 * MIB), Event("freed", number), Event("made", 100 + number, MIB))]  # fmt: skip
    events = [*layers, Event("gradient", 139, MIB)]
    assert training_bytes(events, Replay(0, checkpointing=True)) > 1.5 * training_bytes(events, Replay(0))


def test_validation_begins_with_nothing():
    assert validation_bytes([Event("made", 0, 40 * MIB), Event("freed", 0)]) == pytest.approx(40 * MIB, rel=0.01)
