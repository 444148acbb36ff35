"""The sizes of a decoder, whichever checkpoint they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.models.decoder.rope import Llama3Scaling


@dataclass(frozen=True)
class DecoderConfig:
    """`rope_sections` says how many rotary frequencies turn with time, row and column, in that order.

    Where positions have one dimension, all turn with time. `cross_attention_layers`, rising, are those that attend to
    pictures and not to the text. `read_only_tokens` follow the vocabulary: they have an embedding and no logit.
    """

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_sections: tuple[int, ...]
    tied_embeddings: bool
    qkv_bias: bool
    rope_scaling: Llama3Scaling | None = None
    cross_attention_layers: tuple[int, ...] = ()
    read_only_tokens: int = 0

    def self_attention_layers_before(self, layer: int) -> int:
        """How many; this is the number by which NeMo knows a layer, of either kind."""
        return layer - sum(cross < layer for cross in self.cross_attention_layers)


Rule = tuple[bool, str]
"""Whether sizes fit together, and what is expected of them."""


def decoder_rules(text: DecoderConfig) -> tuple[Rule, ...]:
    return (
        (text.num_heads % text.num_kv_heads == 0, "the attention heads divide evenly among the key-value heads"),
        (text.head_dim % 2 == 0, "an even size of the attention heads"),
        (len(text.rope_sections) == 3 and 2 * sum(text.rope_sections) == text.head_dim, "an mrope_section of three "
         f"numbers that add up to half of the head size ({text.head_dim})"),
        (list(text.cross_attention_layers) == sorted({*range(text.num_layers)} & {*text.cross_attention_layers}),
         f"cross_attention_layers that are some of the {text.num_layers} layers, in order"),
    )  # fmt: skip


def check_rules(rules: tuple[Rule, ...], file: Path) -> None:
    """Raise CheckpointError naming `file` for the first rule that does not hold."""
    for holds, expected in rules:
        if not holds:
            raise CheckpointError(f"{file} describes sizes that do not fit together; expected: {expected}.")
