"""How both layouts describe a Llama 3.2 Vision model beside its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.fiddle_graph import Config, Symbol
from triton_worker.models.conversion import huggingface, nemo, nemo_context
from triton_worker.models.conversion.source import stored_dtype
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.decoder.rope import Llama3Scaling
from triton_worker.models.mllama.config import NEMO_TOWER, MllamaConfig, VisionConfig, nemo_cross_attention_layers
from triton_worker.models.mllama.weights import nemo_place
from triton_worker.processing.tiles import arrangements
from triton_worker.processing.tokenizer import Tokenizer

_MLLAMA = "nemo.collections.vlm.mllama.model.base"
_FOUR_TILES = [list(shape) for shape in arrangements(4)]
_STATEFUL_ENDS = ("patch_embed", "norm_before", "norm_after", "projector")
_STATEFUL_IN_BLOCKS = ("attention_norm", "qkv_proj", "output_proj", "mlp_norm", "mlp.up_proj", "mlp.down_proj")


def check_storable(path: Path, config: MllamaConfig) -> None:
    """Raise CheckpointError unless everything that NeMo 2.0 does not store has the value that NeMo gives it."""
    text, num_cross = config.text, len(config.text.cross_attention_layers)
    layers = nemo_cross_attention_layers(text.num_layers - num_cross, num_cross)
    fixed = {
        "cross_attention_layers": (text.cross_attention_layers, layers),
        **{f"the vision tower's {name}": (getattr(config.vision, name), only) for name, only in NEMO_TOWER.items()},
    }
    for name, (value, only) in fixed.items():
        if value != only:
            raise CheckpointError(
                f"{path / 'config.json'}: {name} is {value}; NeMo 2.0 does not store it and always has {only}."
            )


def nemo_context_of(config: MllamaConfig, dtype: torch.dtype, seq_length: int) -> Config:
    """The root object of io.json: what NeMo's importer passes, and what else differs from the defaults of NeMo."""
    precision = nemo_context.precision_of(dtype)
    parts = {
        "language_model_config": Config(
            Symbol(_MLLAMA, "CrossAttentionTextConfig"), {**_text(config.text, seq_length), **precision}
        ),
        "vision_model_config": Config(
            Symbol(_MLLAMA, "CrossAttentionVisionConfig"),
            {**_vision(config.vision, config.text.hidden_size), **precision},
        ),
    }
    arguments = {
        "config": Config(Symbol(_MLLAMA, "MLlamaModelConfig"), {**nemo_context.parallelism(precision), **parts}),
        "optim": nemo_context.optimizer(),
        "tokenizer": nemo_context.tokenizer(),
    }
    return nemo_context.trainer_context(Config(Symbol(_MLLAMA, "MLlamaModel"), arguments))


def yaml_defaults() -> nemo_context.YamlDefaults:
    """See `nemo_context.YamlDefaults`."""
    text = {"layernorm_epsilon": 1e-5, "scale_factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    vision = {"layernorm_epsilon": 1e-5, "max_num_tiles": 4, "num_global_layers": 8, "gated": False}
    return {
        "language_model_config": {**nemo_context.LANGUAGE_DEFAULTS, **text, "old_context_len": 8192},
        "vision_model_config": vision,
    }


def extra_state(config: MllamaConfig) -> Iterator[str]:
    """Transformer Engine's entries, which NeMo asks for when it loads."""
    yield from nemo.decoder_extra_state(config.text)
    for module in _STATEFUL_ENDS:
        name = nemo_place(f"vision.{module}.weight")[0].removesuffix("weight")
        yield f"{name}_extra_state/shard_0_1"
    for stack, count in (("blocks", config.vision.num_layers), ("global_blocks", config.vision.num_global_layers)):
        for module in _STATEFUL_IN_BLOCKS:
            name = nemo_place(f"vision.{stack}.0.{module}.weight")[0].removesuffix("weight")
            for index in range(count):
                yield f"{name}_extra_state/shard_{index}_{count}"


def _text(text: DecoderConfig, seq_length: int) -> dict[str, Any]:
    num_cross = len(text.cross_attention_layers)
    # With a factor of 1 nothing is scaled.
    scaling = text.rope_scaling or Llama3Scaling(factor=1.0)
    stated = {
        "scale_factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "old_context_len": scaling.original_length,
        "layernorm_epsilon": text.norm_eps,
    }
    defaults = yaml_defaults()["language_model_config"]
    return {
        "rotary_base": text.rope_theta,
        "seq_length": seq_length,
        "num_layers": text.num_layers - num_cross,
        "num_cross_attention_layers": num_cross,
        "hidden_size": text.hidden_size,
        "ffn_hidden_size": text.intermediate_size,
        "num_attention_heads": text.num_heads,
        "num_query_groups": text.num_kv_heads,
        "vocab_size": text.vocab_size,
        **{name: value for name, value in stated.items() if value != defaults[name]},
    }


def _vision(vision: VisionConfig, text_hidden_size: int) -> dict[str, Any]:
    stated = {
        "layernorm_epsilon": (vision.norm_eps, 1e-5),
        "num_global_layers": (vision.num_global_layers, 8),
        "ffn_hidden_size": (vision.intermediate_size, 4 * vision.hidden_size),
        "max_num_tiles": (vision.max_tiles, 4),
        "supported_aspect_ratios": ([list(shape) for shape in arrangements(vision.max_tiles)], _FOUR_TILES),
    }
    return {
        "num_layers": vision.num_layers,
        "hidden_size": vision.hidden_size,
        "num_attention_heads": vision.num_heads,
        "vision_chunk_size": vision.image_size,
        "vision_max_num_chunks": vision.max_tiles,
        "text_hidden_size": text_hidden_size,
        **{name: value for name, (value, default) in stated.items() if value != default},
    }


def model_settings(config: MllamaConfig, source: Checkpoint, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json."""
    text, vision = config.text, config.vision
    rope: dict[str, Any] = {"rope_type": "default"}
    if text.rope_scaling is not None:
        scaling = dataclasses.asdict(text.rope_scaling)
        rope = {"rope_type": "llama3", "original_max_position_embeddings": scaling.pop("original_length"), **scaling}
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "torch_dtype": str(stored_dtype(source)).removeprefix("torch."),
        **tokenizer.picture_token_ids,
        "text_config": {
            "model_type": "mllama_text_model",
            **huggingface.decoder_settings(text, source.seq_length),
            "cross_attention_layers": list(text.cross_attention_layers),
            "eos_token_id": sorted(tokenizer.end_token_ids),
            "pad_token_id": None,  # transformers' own is beyond smaller vocabularies
            "rope_scaling": rope,
        },
        "vision_config": {
            "model_type": "mllama_vision_model",
            "attention_heads": vision.num_heads,
            "hidden_act": "gelu",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_layers_indices": list(vision.intermediate_layers),
            "intermediate_size": vision.intermediate_size,
            "max_num_tiles": vision.max_tiles,
            "norm_eps": vision.norm_eps,
            "num_channels": 3,
            "num_global_layers": vision.num_global_layers,
            "num_hidden_layers": vision.num_layers,
            "patch_size": vision.patch_size,
            "supported_aspect_ratios": [list(shape) for shape in arrangements(vision.max_tiles)],
            "vision_output_dim": vision.output_size,
        },
    }


def picture_settings(vision: VisionConfig) -> dict[str, Any]:
    """preprocessor_config.json."""
    return {
        "image_processor_type": "MllamaImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "max_image_tiles": vision.max_tiles,
        "resample": 2,
        "size": {"height": vision.image_size, "width": vision.image_size},
    }
