"""LLaVA-1.5 from one layout of checkpoints to another, tensor by tensor and bit for bit.

Both layouts keep CLIP's tower as transformers names it, so its tensors are carried over as they are, those included
that LLaVA never runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.errors import CheckpointError
from triton_worker.checkpoint.fiddle_graph import Config, Symbol
from triton_worker.checkpoint.safetensors_writer import SHARD_BYTES
from triton_worker.models import llava
from triton_worker.models.conversion import huggingface, nemo, nemo_context
from triton_worker.models.conversion.source import Parameter, stored_dtype, stream_parameters
from triton_worker.models.decoder.weights_huggingface import DecoderNames
from triton_worker.models.interface import Progress
from triton_worker.models.llava.config import CLIP_TOWERS, ClipConfig, LlavaConfig
from triton_worker.models.llava.prompts import TOKENIZER
from triton_worker.models.llava.weights import NEMO_TOWER, PROJECTOR_MODULES, huggingface_names
from triton_worker.models.megatron import PROJECTION, VISION
from triton_worker.processing.tokenizer import Tokenizer

_NAMES = DecoderNames("language_model.model.", "language_model.lm_head.weight")
_PROJECTOR = "multi_modal_projector."
_TOWER = "vision_tower.vision_model."
_NEMO_PROJECTOR = {"vision.projector.up_proj": f"{PROJECTION}0", "vision.projector.down_proj": f"{PROJECTION}2"}


def write_nemo(source: Checkpoint, directory: Path, progress: Progress | None = None) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged, or NeMo 2.0 has no place for what the model needs.
    """
    config = llava.read_config(source)
    model = _nemo_model(config, _tower_name(source.path, config.vision), stored_dtype(source), source.seq_length)

    def write_tensors(add: nemo.AddChunk) -> None:
        def take(parameter: Parameter) -> None:
            if parameter.name.startswith("decoder."):
                for chunk in nemo.decoder_chunks(parameter, config.text):
                    add(chunk)
            elif parameter.module in _NEMO_PROJECTOR:
                add(nemo.whole(f"{_NEMO_PROJECTOR[parameter.module]}.{parameter.kind}", parameter.values))

        stream_parameters(source, llava, config, take, progress)
        _, _, tower = huggingface_names(lambda name: name in source.weights.names)
        for rest, values in _tower_tensors(source, tower):
            add(nemo.whole(f"{NEMO_TOWER}{rest}", values))

    nemo.write_checkpoint(
        source,
        directory,
        write_tensors,
        nemo.decoder_extra_state(config.text),
        nemo_context.trainer_context(model),
        {"language_transformer_config": {**nemo_context.LANGUAGE_DEFAULTS, "add_qkv_bias": False}},
    )


def write_huggingface(
    source: Checkpoint, directory: Path, progress: Progress | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged, its tokenizer does not fit the model, or its tower is one of
    megatron-core's, which lacks a tensor that Hugging Face stores.
    """
    config = llava.read_config(source)
    if f"{VISION}class_token" in source.weights.names:
        raise CheckpointError(
            f"{source.path}: the vision tower is a CLIPViTConfig, which can be served but not converted: it has no "
            f"post_layernorm. One of HFCLIPVisionConfig can be."
        )
    tokenizer = Tokenizer(source.tokenizer_directory, TOKENIZER)

    def write_tensors(add: huggingface.AddTensor) -> None:
        def take(parameter: Parameter) -> None:
            if parameter.name.startswith("decoder."):
                for name, values in huggingface.decoder_tensors(parameter, config.text, _NAMES):
                    add(name, values)
            elif parameter.module in _NEMO_PROJECTOR:
                [module] = PROJECTOR_MODULES[parameter.module.rpartition(".")[2]]
                add(f"{_PROJECTOR}{module}.{parameter.kind}", parameter.values)

        stream_parameters(source, llava, config, take, progress)
        for rest, values in _tower_tensors(source, NEMO_TOWER):
            add(f"{_TOWER}{rest}", values)

    huggingface.write_checkpoint(
        source,
        directory,
        tokenizer,
        write_tensors,
        _model_settings(config, source, tokenizer),
        {
            "preprocessor_config.json": _picture_settings(config.vision),
            "processor_config.json": _processor_settings(config.vision),
        },
        shard_bytes,
    )


def _tower_tensors(source: Checkpoint, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The tower's tensors by their names below `prefix`."""
    for name in sorted(source.weights.names):
        if name.startswith(prefix) and not name.endswith(".position_ids"):
            yield name.removeprefix(prefix), source.weights.read(name)


def _tower_name(path: Path, vision: ClipConfig) -> str:
    """The name by which NeMo will build the tower, whose sizes it does not store."""
    if vision.norm_eps == 1e-5:
        for name, sizes in CLIP_TOWERS.items():
            if all(getattr(vision, field) == size for field, size in sizes.items()):
                return f"openai/{name}"
    raise CheckpointError(
        f"{path / 'config.json'}: NeMo 2.0 knows a CLIP tower by its name alone, and this one has the sizes of none of "
        f"{', '.join(CLIP_TOWERS)}."
    )


def _nemo_model(config: LlavaConfig, tower: str, dtype: torch.dtype, seq_length: int) -> Config:
    precision = nemo_context.precision_of(dtype)
    llama = Symbol("nemo.collections.llm.gpt.model.llama", "LlamaConfig")
    clip = Symbol("nemo.collections.vlm.vision.base", "HFCLIPVisionConfig")
    hidden_size = config.text.hidden_size
    projector = {
        "hidden_size": hidden_size,
        "ffn_hidden_size": hidden_size,
        "projector_type": "mlp2x_gelu",
        "input_size": config.vision.hidden_size,
    }
    towers = {
        "language_transformer_config": nemo_context.language(llama, config.text, precision, seq_length),
        "vision_transformer_config": Config(
            clip, {"hidden_size": config.vision.hidden_size, "pretrained_model_name_or_path": tower}
        ),
        "vision_projection_config": nemo_context.projection(projector, precision),
        "drop_vision_class_token": True,
        "vision_feature_layer": config.vision.layers_used - config.vision.num_layers - 1,
    }
    neva = "nemo.collections.vlm.neva.model.llava"
    arguments = {
        "config": Config(Symbol(neva, "LlavaConfig"), {**nemo_context.parallelism(precision), **towers}),
        "optim": nemo_context.optimizer(),
        "tokenizer": nemo_context.tokenizer(),
    }
    return Config(Symbol(neva, "LlavaModel"), arguments)


def _model_settings(config: LlavaConfig, source: Checkpoint, tokenizer: Tokenizer) -> dict[str, Any]:
    text, vision = config.text, config.vision
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": str(stored_dtype(source)).removeprefix("torch."),
        **tokenizer.picture_token_ids,
        "image_seq_length": vision.side**2,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": text.tied_embeddings,
        "vision_feature_layer": vision.layers_used - vision.num_layers - 1,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama",
            **huggingface.decoder_settings(text, source.seq_length),
            "head_dim": text.head_dim,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": "quick_gelu",
            "hidden_size": vision.hidden_size,
            "image_size": vision.image_size,
            "intermediate_size": vision.intermediate_size,
            "layer_norm_eps": vision.norm_eps,
            "num_attention_heads": vision.num_heads,
            "num_hidden_layers": vision.num_layers,
            "patch_size": vision.patch_size,
        },
    }


def _picture_settings(vision: ClipConfig) -> dict[str, Any]:
    side = vision.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "resample": 3,
        "size": {"shortest_edge": side},
    }


def _processor_settings(vision: ClipConfig) -> dict[str, Any]:
    return {
        "image_token": TOKENIZER.picture_token,
        "num_additional_image_tokens": 1,  # the class token, which the strategy then drops
        "patch_size": vision.patch_size,
        "processor_class": "LlavaProcessor",
        "vision_feature_select_strategy": "default",
    }
