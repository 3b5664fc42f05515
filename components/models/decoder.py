"""GPT and Llama style decoders from `transformers`: token ids in, next-token logits out.

Shapes: B batch, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from components.errors import SpecError
from components.models.config import GptConfig, LlamaConfig
from components.models.transformer import load_pretrained, make_network

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Decoder(nn.Module):
    """A causal language model. Position t sees tokens 0..t and predicts token t + 1.

    Args:
        config: Sizes, or what to start from.
        inputs: vocab_size, and max_length, the longest sequence it will be trained on.
        network: A full `transformers` config that wins over `config`.
    """

    def __init__(
        self, config: GptConfig | LlamaConfig, inputs: Mapping[str, int], network: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        if network is None and config.pretrained is not None:
            self.decoder = load_pretrained(model_class(config), config.pretrained, attn_implementation="sdpa")
            check_vocabulary(self.decoder.config.vocab_size, inputs["vocab_size"])
        else:
            scratch = network_config(config, inputs)
            shape = scratch if network is None else type(scratch).from_dict(dict(network))
            shape._attn_implementation = "sdpa"
            self.decoder = make_network(model_class(config), shape)
        self.decoder.config.use_cache = False

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, V) of token ids (B, T)."""
        return self.decoder(input_ids=input_ids, use_cache=False).logits


def model_class(config: GptConfig | LlamaConfig) -> Any:
    """The `transformers` class with its language-model head."""
    if isinstance(config, GptConfig):
        from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

        return GPT2LMHeadModel
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    return LlamaForCausalLM


def network_config(config: GptConfig | LlamaConfig, inputs: Mapping[str, int]) -> PretrainedConfig:
    """Our field names to those of `transformers`."""
    if isinstance(config, GptConfig):
        from transformers.models.gpt2.configuration_gpt2 import GPT2Config

        return GPT2Config(
            vocab_size=inputs["vocab_size"],
            n_positions=inputs["max_length"],
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_inner=config.intermediate_size or 4 * config.hidden_size,
            # One kernel; the approximation that `transformers` writes out for GPT-2 is eight, which on a CPU take a
            # sixth of a small network's step.
            activation_function="gelu",
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
    from transformers.models.llama.configuration_llama import LlamaConfig as NetworkConfig

    return NetworkConfig(
        vocab_size=inputs["vocab_size"],
        max_position_embeddings=inputs["max_length"],
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size or llama_width(config.hidden_size),
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads or config.num_attention_heads,
        tie_word_embeddings=config.tie_word_embeddings,
        attention_dropout=config.dropout,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        bos_token_id=None,
        eos_token_id=None,
    )


def llama_width(hidden_size: int) -> int:
    """Width of the gated feed-forward layer: two thirds of 4 x hidden_size, up to a multiple of 64."""
    return -(-8 * hidden_size // 3 // 64) * 64


def check_vocabulary(pretrained: int, data: int) -> None:
    """Raises SpecError if the data's tokens cannot be those of the pretrained network."""
    if data > pretrained:
        raise SpecError(
            f"The pretrained network knows {pretrained} tokens, but the data's tokenizer has {data}; take the "
            "network's own tokenizer: set data.text.tokenizer to its folder or hub name.",
            field="data.text.tokenizer",
        )
