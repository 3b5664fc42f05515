import pytest

from components.train.device import Hardware, Placement, plan_placement


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
