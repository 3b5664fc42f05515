"""Rehearsed bytes against what autograd really keeps."""

import struct

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from components.models.build import build_model
from components.tasks import get_task
from components.train.plan.heap import Replay, training_bytes
from components.train.plan.network import build_empty
from components.train.plan.rehearsal import (
    FORWARD_NUMBERS,
    Step,
    StepMemory,
    backward_scratch_bytes,
    example_batch,
    rehearse,
    straight_line,
)
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


def test_logits_are_gone_before_the_backward_pass():
    workload = make_workload("gpt", num_hidden_layers=1, hidden_size=16)
    logits = 64 * 64 * 500 * 4  # samples, tokens, words, fp32; all else is small beside them
    # Their log-softmax and two gradients, as the loop keeps no name for the logits.
    assert 3 * logits < max(rehearse(workload, 64, Step(bf16=False)).peaks(1.0)) < 3.9 * logits


def test_every_block_of_a_step_is_freed_or_a_gradient():
    events = rehearse(make_workload("mlp"), 16, Step(bf16=False)).events
    made = {event.block: event.size_bytes for event in events if event.kind == "made"}
    gradients = [event.block for event in events if event.kind == "gradient"]
    weights = sum(value.numel() for value in build_empty(make_workload("mlp")).parameters())
    assert sum(made[block] for block in gradients) == 4 * weights
    assert {event.block for event in events} == set(made)


def test_deep_networks_are_drawn_through_a_few_layers():
    workload, how = make_workload("llama", num_hidden_layers=9), Step(bf16=False)
    drawn = StepMemory(workload, how, exact=True).training_bytes(8, Replay(moments=2))
    assert drawn == pytest.approx(training_bytes(rehearse(workload, 8, how).events, Replay(moments=2)), rel=0.1)


def resident_bytes(tensor):
    """Of its pages, those that were written (bit 63 of /proc/self/pagemap, proc(5))."""
    with open("/proc/self/pagemap", "rb") as pages:
        pages.seek(tensor.data_ptr() // 4096 * 8)
        return 4096 * sum(entry >> 63 for (entry,) in struct.iter_unpack("Q", pages.read(tensor.nbytes // 4096 * 8)))


@pytest.mark.parametrize(("width", "hidden"), [(256, 512), (512, 384), (512, 256)])
def test_an_lstm_writes_to_a_part_of_its_workspace(width, hidden):
    kept = []

    class Workspaces(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mkldnn_rnn_layer.default:
                kept.extend(result)
            return result

    inputs = torch.zeros(128, 64, width)
    with Workspaces():
        found, _ = torch.nn.LSTM(width, hidden)(inputs)
    outputs, *_, workspace = kept
    assert resident_bytes(workspace) == pytest.approx(FORWARD_NUMBERS * outputs.nbytes, rel=0.03)
    found.sum().backward()
    more = backward_scratch_bytes(inputs, hidden)
    assert resident_bytes(workspace) == pytest.approx(FORWARD_NUMBERS * outputs.nbytes + more, rel=0.05)


def test_a_rehearsed_lstm_keeps_its_workspace():
    few, many = (max(rehearse(make_workload("lstm", hidden_size=64), n, Step(bf16=False)).peaks(0.0)) for n in (1, 9))
    # Two directions of 5 x 64 fp32 numbers, and their outputs, for each of 32 tokens.
    assert many - few > 8 * 2 * 32 * 6 * 64 * 4


def test_straight_line():
    assert straight_line((2, 4), (10, 14), 8) == 22
    assert straight_line((2, 4), (10, 0), 8) == 0
