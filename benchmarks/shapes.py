"""Models to measure: the demo checkpoint, or Qwen2.5-VL of the published sizes with random weights."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_weights import RandomWeights, fill_huggingface
from triton_worker import convert
from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.decoder.config import DecoderConfig
from triton_worker.models.qwen2_5_vl import build_model, fill_weights
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


# From the config.json of Qwen2.5-VL-3B-Instruct and Qwen2.5-VL-7B-Instruct; and one for trying a benchmark out.
SHAPES = {
    "3b": _shape(36, 2048, 16, 2, 11008, 151936, tied=True),
    "7b": _shape(28, 3584, 28, 4, 18944, 152064, tied=False),
    "tiny": _shape(4, 512, 4, 2, 1024, 1000, tied=True, vision=_SMALL_VISION),
}


def build(shape: str, dtype: torch.dtype, device: torch.device) -> tuple[QwenVL, int]:
    """The model and its image token's id."""
    if shape == "demo":
        checkpoint = open_checkpoint(str(DEMO_CHECKPOINT))
        model = load_model(checkpoint, dtype, device)
        assert isinstance(model, QwenVL)
        return model, Tokenizer(checkpoint.tokenizer_directory, prompts_of(checkpoint.family).TOKENIZER).image_token_id
    config = SHAPES[shape]
    random = build_model(config, Ranks(), dtype=dtype, device=device)
    fill_weights(RandomWeights(random, dtype, device), "huggingface", random)
    return random, _image_token(config)


def _image_token(config: Qwen25VLConfig) -> int:
    """Any will do, where no tokenizer is."""
    return config.text.vocab_size - 1


def build_huggingface(shape: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Transformers' model of the same weights."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    if shape == "demo":
        with tempfile.TemporaryDirectory() as directory:
            converted = str(Path(directory) / "converted")
            with contextlib.redirect_stdout(io.StringIO()):
                convert.main(["nemo-to-hf", str(DEMO_CHECKPOINT), converted])
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(converted, dtype=dtype).to(device)
        return model.train(False)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(_huggingface_config(SHAPES[shape]))
    finally:
        torch.set_default_dtype(torch.float32)
    fill_huggingface(model)
    return model.train(False)


def _huggingface_config(config: Qwen25VLConfig) -> Any:
    from transformers import Qwen2_5_VLConfig

    text, vision = config.text, config.vision
    return Qwen2_5_VLConfig(
        text_config={
            "num_hidden_layers": text.num_layers,
            "hidden_size": text.hidden_size,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
            "intermediate_size": text.intermediate_size,
            "vocab_size": text.vocab_size,
            "rms_norm_eps": text.norm_eps,
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
        image_token_id=_image_token(config),
        tie_word_embeddings=text.tied_embeddings,
    )
