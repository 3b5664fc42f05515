"""Rehearsed bytes against what autograd really keeps."""

import pytest
import torch

from components.models.build import build_model
from components.tasks import get_task
from components.train.plan.rehearsal import Step, StepMemory, example_batch, heap_bytes, rehearse, straight_line
from tests.components.train.plan.workloads import make_workload


def bytes_kept_by_autograd(workload, batch):
    """Of all storages that a real forward pass saves for the backward one, without weights and inputs."""
    module = build_model(workload.model, workload.inputs, workload.num_classes)
    inputs, labels = example_batch(workload, batch)
    known = {value.untyped_storage().data_ptr() for value in (*module.parameters(), *inputs.values(), labels)}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = get_task(workload.task).loss(module(**inputs).float(), labels, 0.0)
    assert loss.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("architecture", ["mlp", "resnet", "vit", "bert", "gpt", "llama", "t5"])
def test_the_peak_is_what_autograd_keeps_and_a_little_more(architecture):
    workload = make_workload(architecture)
    kept = bytes_kept_by_autograd(workload, batch=16)
    # More: what the next operation makes before its inputs go. Less than twice in any network that has layers.
    assert kept <= max(rehearse(workload, 16, Step(bf16=False, gpu=True)).peaks(0.0)) < 2 * kept + 100_000


def test_lines_through_a_few_layers_and_samples_meet_the_full_size():
    workload = make_workload("llama", num_hidden_layers=9)
    for bf16 in (False, True):
        drawn = StepMemory(workload, Step(bf16)).peak(8, 1.0)
        assert drawn == pytest.approx(max(rehearse(workload, 8, Step(bf16)).peaks(1.0)), rel=0.02)


def test_checkpointing_keeps_less():
    workload = make_workload("gpt", num_hidden_layers=6)
    assert peak(workload, checkpointing=True) < 0.6 * peak(workload)


def test_attention_with_dropout_keeps_all_weights_on_a_cpu_but_not_on_a_gpu():
    plain, dropped = make_workload("gpt"), make_workload("gpt", dropout=0.1)
    matrices = 2 * 16 * 4 * 64 * 64 * 4  # layers, samples, heads, tokens squared, fp32
    assert peak(dropped) - peak(plain) > matrices
    assert peak(dropped, gpu=True) - peak(plain, gpu=True) < matrices


def peak(workload, **how):
    return max(rehearse(workload, 16, Step(bf16=False, **how)).peaks(0.0))


def test_small_blocks_cost_more_than_their_size_in_a_heap():
    assert heap_bytes(1000) == 1350
    assert heap_bytes(64 << 20) == 64 << 20


def test_straight_line():
    assert straight_line((2, 4), (10, 14), 8) == 22
    assert straight_line((2, 4), (10, 0), 8) == 0
