import pytest

from components.train.plan.network import count_parameters
from components.train.plan.speed import count_flops, expected_pace, find_gpu, flops_per_sample, flops_per_token
from tests.components.train.plan.workloads import llama_70b, make_workload


def test_flops_of_a_token_are_six_for_each_weight_and_the_attention():
    workload = llama_70b()
    sizes = count_parameters(workload)
    matrices = 70_553_706_496 - 128_256 * 8192
    assert flops_per_token(sizes, workload) == 6 * matrices + 12 * 80 * 8192 * 4096


def test_the_formula_agrees_with_counting_every_operation():
    workload = make_workload("llama")
    # torch counts nothing for the CPU's attention kernel; the formula counts vectors as if they were multiplied with.
    attention = 12 * 2 * 64 * 64
    counted = count_flops(workload) / workload.tokens + attention
    assert flops_per_token(count_parameters(workload), workload) == pytest.approx(counted, rel=0.01)


def test_a_convolution_uses_each_weight_many_times():
    workload = make_workload("cnn")
    sizes = count_parameters(workload)
    assert flops_per_sample(sizes, workload) > 10 * 6 * sizes.parameters


def test_pace_to_the_end_and_its_cost():
    pace = expected_pace(100.0, tokens=10, global_batch_size=50, samples=360_000, workers=8, price=2.0)
    assert (pace.tokens_per_s, pace.step_s, pace.hours, pace.cost) == (1000.0, 0.5, 1.0, 16.0)
    assert expected_pace(100.0, 10, 50, None, 8, 2.0).cost is None


def test_a_gpu_is_found_by_the_name_that_torch_gives_it():
    found = find_gpu("NVIDIA H100 80GB HBM3")
    assert found is not None
    assert found.peak_tflops == 989
    assert find_gpu("L40S") != find_gpu("L4")
    assert find_gpu("abacus") is None
