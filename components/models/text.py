"""Small networks for texts. Shapes: B batch, T tokens, E embedding, F filters, H hidden.

Padding never reaches the result: padded positions are zeroed before a convolution, left out of the pooling, and a
backward recurrence starts at each text's own last token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from components.models.config import GruConfig, LstmConfig, TextCnnConfig


class TextCnn(nn.Module):
    """Convolutions of several widths over word vectors, each pooled by its maximum.

    Source: Kim 2014, https://arxiv.org/abs/1408.5882
    """

    def __init__(self, config: TextCnnConfig, inputs: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        self.word_dropout = config.word_dropout
        self.embedding = token_embedding(config.embedding_size, inputs)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.num_filters, size) for size in config.kernel_sizes
        )
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.num_filters * len(config.kernel_sizes), num_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of token ids and their mask (B, T)."""
        mask_BT1 = attention_mask.unsqueeze(-1).to(self.embedding.weight.dtype)
        kept_BT1 = drop_words(mask_BT1, self.word_dropout) if self.training else mask_BT1
        vectors_BET = (self.embedding(input_ids) * kept_BT1).transpose(1, 2)
        pooled = [pool_convolution(layer, vectors_BET, mask_BT1) for layer in self.convolutions]
        return self.classifier(self.dropout(torch.cat(pooled, dim=1)))


def drop_words(mask: torch.Tensor, probability: float) -> torch.Tensor:
    """The mask with whole tokens taken out at random."""
    return mask * (torch.rand_like(mask) >= probability)


def pool_convolution(layer: nn.Module, vectors_BET: torch.Tensor, mask_BT1: torch.Tensor) -> torch.Tensor:
    """The largest answer (B, F) of each filter over windows that begin at a real token."""
    width = layer.kernel_size[0]
    # Zeros on the right, so that a text shorter than the window still has one window a token.
    answers_BFT = functional.relu(layer(functional.pad(vectors_BET, (0, width - 1))))
    return (answers_BFT * mask_BT1.transpose(1, 2)).amax(dim=2)


class Recurrent(nn.Module):
    """LSTM or GRU layers, forward and if asked backward, averaged over the tokens."""

    def __init__(self, config: LstmConfig | GruConfig, inputs: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        directions = 2 if config.bidirectional else 1
        widths = [config.embedding_size] + [config.hidden_size * directions] * (config.num_hidden_layers - 1)
        cell = nn.LSTM if isinstance(config, LstmConfig) else nn.GRU
        self.embedding = token_embedding(config.embedding_size, inputs)
        self.forwards = nn.ModuleList(cell(width, config.hidden_size, batch_first=True) for width in widths)
        backward_widths = widths if config.bidirectional else []
        self.backwards = nn.ModuleList(cell(width, config.hidden_size, batch_first=True) for width in backward_widths)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size * directions, num_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of token ids and their mask (B, T)."""
        states_BTH = self.dropout(self.embedding(input_ids))
        reversal_BT = reversed_positions(attention_mask)
        for index, layer in enumerate(self.forwards):
            outputs = [layer(states_BTH)[0]]
            if self.backwards:
                outputs.append(run_backward(self.backwards[index], states_BTH, reversal_BT))
            states_BTH = self.dropout(torch.cat(outputs, dim=2))
        return self.classifier(masked_mean(states_BTH, attention_mask))


def reversed_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """For each position the one it swaps with when the real tokens of each text are reversed; int64, (B, T)."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device).unsqueeze(0)
    lengths = attention_mask.sum(dim=1, keepdim=True)
    return torch.where(positions < lengths, lengths - 1 - positions, positions)


def run_backward(layer: nn.Module, states_BTH: torch.Tensor, reversal_BT: torch.Tensor) -> torch.Tensor:
    """Runs a recurrent layer from each text's last token to its first."""
    outputs = layer(take_positions(states_BTH, reversal_BT))[0]
    return take_positions(outputs, reversal_BT)


def take_positions(states_BTH: torch.Tensor, positions_BT: torch.Tensor) -> torch.Tensor:
    index = positions_BT.unsqueeze(-1).expand(-1, -1, states_BTH.shape[2])
    return states_BTH.gather(1, index)


def masked_mean(states_BTH: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The mean (B, H) over real tokens."""
    mask_BT1 = attention_mask.unsqueeze(-1).to(states_BTH.dtype)
    return (states_BTH * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1).clamp(min=1)


def token_embedding(embedding_size: int, inputs: Mapping[str, int]) -> nn.Embedding:
    """Word vectors with the small start of trained ones: the default N(0, 1) drowns short texts in noise."""
    embedding = nn.Embedding(inputs["vocab_size"], embedding_size, padding_idx=inputs["pad_token_id"])
    nn.init.normal_(embedding.weight, std=0.1)
    return embedding
