"""A `transformers` network whose weights are sharded while it is made: no worker ever holds all of them (ZeRO-3).

DeepSpeed divides each module's weights as soon as the module is there; then they are drawn, one module after the other,
in the order and with the random numbers of a network that is made whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Zero3Config:
    """What `transformers` asks for to know that weights are sharded; its own class would need `accelerate`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_zero3(self) -> bool:
        return True


@contextmanager
def sharding(config: dict[str, Any]) -> Iterator[None]:
    """Inside, networks from `transformers` are made sharded, and pretrained weights are read shard by shard.

    Args:
        config: Of DeepSpeed, with stage 3. The process group must exist.
    """
    from transformers import modeling_utils
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    held = Zero3Config(config)  # only a weak reference is kept
    set_hf_deepspeed_config(held)
    # It would compare what is left of sharded weights, which is nothing, and so tie an output layer of its own.
    compare = modeling_utils._tied_params_are_equal
    modeling_utils._tied_params_are_equal = equal_weights
    try:
        yield
    finally:
        modeling_utils._tied_params_are_equal = compare
        unset_hf_deepspeed_config()


def equal_weights(first: nn.Parameter, second: nn.Parameter) -> bool:
    """Whether two weights, sharded or not, are the same; called by every worker."""
    with gathered([first, second]):
        return torch.equal(first, second)


def make_sharded(model_class: Any, shape: Any, options: dict[str, Any]) -> Any:
    """The network, with weights drawn from torch's global generator; called by every worker."""
    import deepspeed
    from transformers.initialization import no_init_weights
    from transformers.integrations.deepspeed import deepspeed_config, prevent_arange_dtype_change
    from transformers.modeling_utils import set_zero3_state

    with (
        no_init_weights(),
        prevent_arange_dtype_change(),
        deepspeed.zero.Init(config_dict_or_path=deepspeed_config()),
        set_zero3_state(),
    ):
        network = model_class(shape, **options)
    draw_weights(network)
    network.tie_weights()
    return network


@torch.no_grad()
def draw_weights(network: Any) -> None:
    """Draws module by module, each whole for that moment, as `initialize_weights` of `transformers` goes through them.

    Its own form for ZeRO-3 draws on worker 0 alone and on the GPU; here all draw, on the CPU: the generators stay
    together, and the numbers are those of a network made whole.
    """
    from transformers import PreTrainedModel
    from transformers.initialization import guard_torch_init_functions

    def visit(module: nn.Module, draw: Callable[[nn.Module], None]) -> None:
        children = list(module.children())
        for child in children:
            visit(child, child._initialize_weights if isinstance(child, PreTrainedModel) else draw)
        # A module may draw the weights of its parts, too: output layers of GPT-2 have a scale of their own.
        parts = [module, *(child for child in children if not isinstance(child, PreTrainedModel))]
        with gathered([value for part in parts for value in part.parameters(recurse=False)]):
            draw(module)

    with guard_torch_init_functions():
        visit(network, network._initialize_weights)


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters are whole and on the CPU, to be changed alike on every worker."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    sharded = [value for value in parameters if hasattr(value, "ds_id")]
    with GatheredParameters(sharded, modifier_rank=0):
        places = [value.data for value in sharded]
        for value in sharded:
            value.data = value.data.cpu()
        yield
        for value, place in zip(sharded, places, strict=True):
            place.copy_(value.data)
            value.data = place
