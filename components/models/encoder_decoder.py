"""T5 from `transformers`: token ids of a source and of the target so far in, next-token logits out.

Shapes: B batch, T source tokens, U target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from components.models.config import T5Config
from components.models.decoder import check_vocabulary
from components.models.transformer import load_pretrained, make_network

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class EncoderDecoder(nn.Module):
    """Target position u sees the whole source and target tokens 0..u, and predicts token u + 1.

    Args:
        config: Sizes, or what to start from.
        inputs: vocab_size, pad_token_id (a target begins after it) and eos_token_id (a target ends with it).
        network: A full `transformers` config that wins over `config`.
    """

    def __init__(self, config: T5Config, inputs: Mapping[str, int], network: Mapping[str, Any] | None) -> None:
        from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration

        super().__init__()
        if network is None and config.pretrained is not None:
            self.encoder_decoder = load_pretrained(
                T5ForConditionalGeneration, config.pretrained, attn_implementation="sdpa"
            )
            check_vocabulary(self.encoder_decoder.config.vocab_size, inputs["vocab_size"])
            # T5 1.1 and its kin have an output layer of their own, which `transformers` finds among the weights alone.
            tied = self.encoder_decoder.lm_head.weight is self.encoder_decoder.shared.weight
            self.encoder_decoder.config.tie_word_embeddings = tied
        else:
            scratch = network_config(config, inputs)
            shape = scratch if network is None else type(scratch).from_dict(dict(network))
            shape._attn_implementation = "sdpa"
            self.encoder_decoder = make_network(T5ForConditionalGeneration, shape)
            if network is not None and not network.get("tie_word_embeddings", True):
                output = self.encoder_decoder.lm_head
                output.weight = nn.Parameter(output.weight.detach().clone())

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, decoder_input_ids: torch.Tensor
    ) -> torch.Tensor:
        """Logits (B, U, V) of sources and their mask (B, T), and of targets one token later (B, U)."""
        return self.encoder_decoder(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        ).logits


def network_config(config: T5Config, inputs: Mapping[str, int]) -> PretrainedConfig:
    """Our field names to those of `transformers`."""
    from transformers.models.t5.configuration_t5 import T5Config as NetworkConfig

    return NetworkConfig(
        vocab_size=inputs["vocab_size"],
        d_model=config.hidden_size,
        d_kv=config.hidden_size // config.num_attention_heads,
        d_ff=config.intermediate_size or 4 * config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_decoder_layers=config.num_decoder_layers or config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        relative_attention_num_buckets=config.relative_attention_num_buckets,
        relative_attention_max_distance=config.relative_attention_max_distance,
        dropout_rate=config.dropout,
        feed_forward_proj=config.feed_forward_proj,
        pad_token_id=inputs["pad_token_id"],
        eos_token_id=inputs["eos_token_id"],
        decoder_start_token_id=inputs["pad_token_id"],
    )
