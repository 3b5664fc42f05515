import pytest

from components.train.device import Hardware, Placement, even_share, places, plan_placement


@pytest.mark.parametrize(
    ("hardware", "workers", "precision", "local_rank", "expected"),
    [
        (Hardware(0, 2), 1, "auto", 0, Placement("cpu", "gloo", "fp32", 2, 2, 0)),
        (Hardware(0, 2), 2, "auto", 1, Placement("cpu", "gloo", "fp32", 1, 1, 0)),
        (Hardware(0, 8, cpu_bf16=True), 2, "auto", 0, Placement("cpu", "gloo", "probe", 4, 4, 0)),
        (Hardware(0, 8, threads=1), 1, "bf16", 0, Placement("cpu", "gloo", "bf16", 1, 8, 0)),
        (Hardware(8, 64), 8, "auto", 3, Placement("cuda:3", "nccl", "bf16", 8, 8, 1)),
        (Hardware(1, 64), 8, "fp32", 3, Placement("cuda:0", "nccl", "fp32", 8, 8, 1)),
        (Hardware(0, 1), 2, "fp32", 0, Placement("cpu", "gloo", "fp32", 1, 1, 0)),
    ],
)
def test_placement_follows_from_hardware(hardware, workers, precision, local_rank, expected):
    assert plan_placement(hardware, workers, precision, local_rank) == expected


@pytest.mark.parametrize(
    ("machines", "workers", "share"),
    [
        ([Hardware(0, 8)], 3, 2),
        ([Hardware(0, 4)] * 3, 2, 4),
        ([Hardware(0, 8)] * 2, 3, 4),
        ([Hardware(0, 2), Hardware(0, 16)], 2, 8),
        ([Hardware(0, 2)], 8, 1),
        ([Hardware(0, 16), Hardware(4, 32)], 2, 16),  # a GPU each, and the first machine has none
        ([Hardware(4, 32), Hardware(1, 64)], 5, 8),
    ],
)
def test_each_worker_has_its_cores_on_one_machine(machines, workers, share):
    assert even_share(machines, workers) == share


def test_places_are_counted_machine_by_machine():
    assert places([Hardware(0, 3), Hardware(0, 3)], cores=2) == 2
    assert places([Hardware(2, 16), Hardware(0, 64)]) == 2
