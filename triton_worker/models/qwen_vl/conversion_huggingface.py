"""Qwen2-VL and Qwen2.5-VL as Hugging Face's hub stores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.safetensors_writer import SHARD_BYTES
from triton_worker.models.conversion import huggingface
from triton_worker.models.conversion.source import Parameter, stored_dtype, stream_parameters
from triton_worker.models.decoder.weights_huggingface import DecoderNames
from triton_worker.models.interface import Progress
from triton_worker.models.qwen_vl.config import QwenVLConfig, VisionConfig
from triton_worker.models.qwen_vl.prompts import TOKENIZER
from triton_worker.models.qwen_vl.weights import MERGER_MODULES
from triton_worker.models.registry import FamilyModule
from triton_worker.processing.tokenizer import Tokenizer

_NAMES = DecoderNames("model.", "lm_head.weight")

# The hub's preprocessor_config.json of every model of both, for checkpoints that come without one, as NeMo's do.
_MIN_PIXELS, _MAX_PIXELS = 3136, 12845056


@dataclass(frozen=True)
class HuggingFaceForm:
    """In what Hugging Face keeps the two families apart.

    block_modules: those of the tower's blocks by our names. vision: vision_config beside what both have alike.
    """

    name: str
    model_type: str
    block_modules: Mapping[str, tuple[str, ...]]
    vision: Mapping[str, Any]


def write_huggingface(
    source: Checkpoint,
    directory: Path,
    family: FamilyModule,
    config: QwenVLConfig[VisionConfig],
    form: HuggingFaceForm,
    progress: Progress | None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `source` to `directory`, which must not exist yet; dtypes stay.

    Raises CheckpointError when `source` is damaged or its tokenizer does not fit the model.
    """
    tokenizer = Tokenizer(source.tokenizer_directory, TOKENIZER)

    def write_tensors(add: huggingface.AddTensor) -> None:
        def take(parameter: Parameter) -> None:
            for name, values in _tensors(parameter, config, form.block_modules):
                add(name, values)

        stream_parameters(source, family, config, take, progress)

    huggingface.write_checkpoint(
        source,
        directory,
        tokenizer,
        write_tensors,
        _model_settings(config, source, tokenizer, form),
        {"preprocessor_config.json": _picture_settings(config.vision, form)},
        shard_bytes,
    )


def _tensors(
    parameter: Parameter, config: QwenVLConfig[VisionConfig], block_modules: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, Tensor]]:
    vision, values = config.vision, parameter.values
    if parameter.name.startswith("decoder."):
        yield from huggingface.decoder_tensors(parameter, config.text, _NAMES)
    elif parameter.module == "vision.patch_embed":
        patch = (3, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        yield "visual.patch_embed.proj.weight", values.view(-1, *patch)
    elif parameter.module.startswith("vision.merger."):
        [module] = MERGER_MODULES[parameter.module.removeprefix("vision.merger.")]
        yield f"visual.merger.{module}.{parameter.kind}", values
    else:
        modules = block_modules[parameter.in_layer]
        for module, part in zip(modules, values.chunk(len(modules)), strict=True):
            yield f"visual.blocks.{parameter.layer}.{module}.{parameter.kind}", part


def _model_settings(
    config: QwenVLConfig[VisionConfig], source: Checkpoint, tokenizer: Tokenizer, form: HuggingFaceForm
) -> dict[str, Any]:
    text = config.text
    return {
        "architectures": [f"{form.name}ForConditionalGeneration"],
        "model_type": form.model_type,
        "torch_dtype": str(stored_dtype(source)).removeprefix("torch."),
        **huggingface.decoder_settings(text, source.seq_length),
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": list(text.rope_sections)},
        "use_sliding_window": False,
        "eos_token_id": sorted(tokenizer.end_token_ids)[0],
        **tokenizer.picture_token_ids,
        "vision_config": {"model_type": form.model_type, **_vision_settings(config.vision), **form.vision},
    }


def _vision_settings(vision: VisionConfig) -> dict[str, Any]:
    return {
        "depth": vision.num_layers,
        "in_channels": 3,
        "num_heads": vision.num_heads,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge_size,
        "spatial_patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def _picture_settings(vision: VisionConfig, form: HuggingFaceForm) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": f"{form.name}Processor",
        "image_mean": list(vision.image_mean),
        "image_std": list(vision.image_std),
        "min_pixels": _MIN_PIXELS,
        "max_pixels": _MAX_PIXELS,
        "patch_size": vision.patch_size,
        "merge_size": vision.merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
