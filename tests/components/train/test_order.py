import numpy as np

from components.train.order import BatchShape, epoch_order, micro_batch

SHAPE = BatchShape(rows=50, global_batch_size=16, accumulation=2, world_size=1)


def test_every_row_is_seen_and_all_batches_are_full():
    order = epoch_order(3, 0, SHAPE)
    assert len(order) == SHAPE.steps_per_epoch * 16 == 64
    assert sorted(order[:50]) == list(range(50))


def test_order_is_a_function_of_seed_and_epoch():
    assert np.array_equal(epoch_order(3, 1, SHAPE), epoch_order(3, 1, SHAPE))
    assert not np.array_equal(epoch_order(3, 1, SHAPE), epoch_order(3, 2, SHAPE))
    assert not np.array_equal(epoch_order(3, 1, SHAPE), epoch_order(4, 1, SHAPE))


def test_a_step_has_the_same_rows_at_any_world_size():
    order = epoch_order(0, 0, SHAPE)
    for world_size, accumulation in ((1, 1), (2, 1), (2, 2), (4, 2)):
        shape = BatchShape(50, 16, accumulation, world_size)
        parts = [micro_batch(order, 1, part, rank, shape) for part in range(accumulation) for rank in range(world_size)]
        assert sorted(np.concatenate(parts)) == sorted(order[16:32])


def test_fewer_rows_than_a_batch_still_make_one_step():
    shape = BatchShape(rows=3, global_batch_size=8, accumulation=1, world_size=1)
    assert sorted(set(epoch_order(0, 0, shape))) == [0, 1, 2]
    assert len(epoch_order(0, 0, shape)) == 8
