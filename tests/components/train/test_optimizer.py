import copy

import pytest
import torch
from torch import nn

from components.train.config import RegularizeConfig, TrainConfig
from components.train.optimizer import make_optimizer, weight_penalty

KINDS = {
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@pytest.mark.parametrize("name", KINDS)
def test_optimizer_by_name_lowers_a_loss(name):
    torch.manual_seed(0)
    module, inputs = nn.Linear(4, 1), torch.randn(16, 4)
    optimizer = make_optimizer(TrainConfig.model_validate({"optimizer": {"name": name}, "learning_rate": 0.05}), module)
    assert type(optimizer) is KINDS[name]
    losses = []
    for _ in range(20):
        loss = (module(inputs) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest_and_both_come_back():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 5))
    config = TrainConfig.model_validate({"optimizer": {"name": "muon"}, "learning_rate": 0.05})
    optimizer, other = make_optimizer(config, module), make_optimizer(config, module)
    muon, adamw = optimizer.members
    assert [value.shape for group in muon.param_groups for value in group["params"]] == [(8, 8)]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4

    def step(chosen):
        chosen.zero_grad()
        (module(torch.arange(5)) - torch.eye(5)).square().mean().backward()
        for group in chosen.param_groups:
            group["lr"] = 0.02
        chosen.step()
        return [value.detach().clone() for value in module.parameters()]

    before = [value.detach().clone() for value in module.parameters()]
    state = step(optimizer)
    assert not any(map(torch.equal, before, state))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected = step(optimizer)
    for value, old in zip(module.parameters(), state, strict=True):
        value.data.copy_(old)
    assert all(map(torch.equal, step(other), expected))


def test_only_matrices_decay():
    optimizer = make_optimizer(TrainConfig(regularize=RegularizeConfig(weight_decay=0.5)), nn.Linear(4, 1))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_penalty_is_the_closed_form():
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, -3.0)
    penalty = weight_penalty(RegularizeConfig(l1=0.1, l2=0.2), module)
    assert float(penalty.detach()) == pytest.approx(0.1 * 6 + 0.5 * 0.2 * 18)
    assert weight_penalty(RegularizeConfig(), module) is None
