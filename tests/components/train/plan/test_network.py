import pytest

from components.models.build import build_model
from components.train.plan.network import count_parameters, group_modules, split_name
from tests.components.train.plan.workloads import llama_70b, make_workload


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "resnet", "vit", "bert", "lstm", "gpt", "llama", "t5"])
def test_counts_what_the_real_network_has(architecture):
    workload = make_workload(architecture)
    real = build_model(workload.model, workload.inputs, workload.num_classes)
    assert count_parameters(workload).parameters == sum(value.numel() for value in real.parameters())


def test_70_billion_parameters_are_counted_without_making_one():
    sizes = count_parameters(llama_70b())
    # Llama 3 70B has 70,553,706,496 parameters (its model card says 70.6B).
    assert sizes.parameters == 70_553_706_496
    assert sum(module.parameters for module in sizes.modules) == sizes.parameters
    (mlp,) = [module for module in sizes.modules if module.name.endswith("layers.*.mlp")]
    assert (mlp.copies, mlp.parameters) == (80, 80 * 3 * 8192 * 28672)
    assert sizes.largest_block == 128_256 * 8192


def test_tied_embeddings_count_once_and_are_multiplied_with():
    gpt = count_parameters(make_workload("gpt"))
    assert gpt.looked_up == 64 * 64  # positions; the words are the output layer too
    llama = count_parameters(make_workload("llama"))
    assert llama.looked_up == 500 * 64


def test_copies_of_a_block_are_counted_together():
    sizes = {"wte.weight": 10, "h.0.attn.q.weight": 2, "h.0.attn.q.bias": 1, "h.1.attn.q.weight": 2, "head.weight": 5}
    assert [(m.name, m.copies, m.parameters) for m in group_modules(sizes)] == [
        ("wte", 1, 10),
        ("h.*.attn", 2, 5),
        ("head", 1, 5),
    ]


def test_a_parameter_is_named_by_its_block_and_its_group():
    assert split_name("model.layers.11.mlp.up.weight") == ("model.layers.11", "model.layers.*.mlp")
    assert split_name("classifier.bias") == ("classifier", "classifier")
