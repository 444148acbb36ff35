"""Models to measure: the demo checkpoint, or Qwen2.5-VL of the published sizes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.qwen2_5_vl import build_model
from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig, VisionConfig
from triton_worker.models.qwen_vl.model import QwenVL
from triton_worker.models.registry import load_model, prompts_of
from triton_worker.parallel import Ranks
from triton_worker.processing.tokenizer import Tokenizer

DEMO_CHECKPOINT = Path(__file__).parents[1] / "examples" / "demo_model" / "checkpoint"
_VISION = VisionConfig(
    num_layers=32, hidden_size=1280, num_heads=16, intermediate_size=3420, full_attention_layers=(7, 15, 23, 31)
)


_SMALL_VISION = VisionConfig(
    num_layers=2, hidden_size=64, num_heads=4, intermediate_size=96, full_attention_layers=(1,)
)


def _shape(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    inner: int,
    vocabulary: int,
    *,
    tied: bool,
    vision: VisionConfig = _VISION,
) -> Qwen25VLConfig:
    text = DecoderConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        intermediate_size=inner,
        vocab_size=vocabulary,
        norm_eps=1e-6,
        rope_theta=1e6,
        rope_sections=(16, 24, 24),
        tied_embeddings=tied,
        qkv_bias=True,
    )
    return Qwen25VLConfig(text, vision)


# From the config.json of Qwen2.5-VL-3B-Instruct and Qwen2.5-VL-7B-Instruct.
SHAPES = {
    "3b": _shape(36, 2048, 16, 2, 11008, 151936, tied=True),
    "7b": _shape(28, 3584, 28, 4, 18944, 152064, tied=False),
}
TINY = _shape(4, 512, 4, 2, 1024, 1000, tied=True, vision=_SMALL_VISION)
"""For trying a benchmark out."""
_IMAGE_TOKEN = 151655


def build(shape: str, dtype: torch.dtype, device: torch.device) -> tuple[QwenVL, int]:
    """The model and its image token's id."""
    if shape == "demo":
        checkpoint = open_checkpoint(str(DEMO_CHECKPOINT))
        model = load_model(checkpoint, dtype, device)
        assert isinstance(model, QwenVL)
        return model, Tokenizer(checkpoint.tokenizer_directory, prompts_of(checkpoint.family).TOKENIZER).image_token_id
    random = build_model(SHAPES[shape], Ranks(), dtype=dtype, device=device)
    _randomise(random)
    return random, _IMAGE_TOKEN


def _randomise(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(1.0)


def build_huggingface(config: Qwen25VLConfig, image_token: int, dtype: torch.dtype, device: torch.device) -> Any:
    """Transformers' model of the same sizes, with random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    text, vision = config.text, config.vision
    theirs = Qwen2_5_VLConfig(
        text_config={
            "num_hidden_layers": text.num_layers,
            "hidden_size": text.hidden_size,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
            "intermediate_size": text.intermediate_size,
            "vocab_size": text.vocab_size,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_theta,
                "mrope_section": list(text.rope_sections),
            },
            "max_position_embeddings": 32768,
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": vision.num_layers,
            "hidden_size": vision.hidden_size,
            "num_heads": vision.num_heads,
            "intermediate_size": vision.intermediate_size,
            "fullatt_block_indexes": list(vision.full_attention_layers),
            "out_hidden_size": text.hidden_size,
        },
        image_token_id=image_token,
        tie_word_embeddings=text.tied_embeddings,
    )
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(theirs)
    finally:
        torch.set_default_dtype(torch.float32)
    model.train(False)
    return model
