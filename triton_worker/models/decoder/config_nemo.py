"""A decoder's sizes from the context of a NeMo 2.0 checkpoint."""

from __future__ import annotations

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.fields import Fields
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.weights_nemo import WORD_EMBEDDINGS


def head_dim_of(fields: Fields) -> int:
    """The size of the attention heads in a `language_transformer_config`."""
    return fields.integer("kv_channels", max(1, fields.integer("hidden_size") // fields.integer("num_attention_heads")))


def read_decoder(
    checkpoint: Checkpoint,
    fields: Fields,
    *,
    norm_eps: float,
    rope_theta: float,
    rope_sections: tuple[int, ...],
    qkv_bias: bool,
) -> DecoderConfig:
    """From a `language_transformer_config`; `norm_eps` and `rope_theta` are the defaults of NeMo's class for it.

    Raises CheckpointError where a size is missing.
    """
    num_heads = fields.integer("num_attention_heads")
    return DecoderConfig(
        num_layers=fields.integer("num_layers"),
        hidden_size=fields.integer("hidden_size"),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_query_groups", num_heads),
        head_dim=head_dim_of(fields),
        intermediate_size=fields.integer("ffn_hidden_size"),
        # Without a size of its own NeMo pads the tokenizer's, so only the tensor knows it.
        vocab_size=fields.integer("vocab_size", checkpoint.weights.shape(WORD_EMBEDDINGS)[0]),
        norm_eps=fields.number("layernorm_epsilon", norm_eps),
        rope_theta=fields.number("rotary_base", rope_theta),
        rope_sections=rope_sections,
        tied_embeddings=fields.flag("share_embeddings_and_output_weights", False),
        qkv_bias=qkv_bias,
    )
