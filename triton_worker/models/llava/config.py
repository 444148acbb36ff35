"""The sizes of a LLaVA-1.5 model, whichever checkpoint they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_worker.checkpoint.checkpoint import Checkpoint
from triton_worker.checkpoint.fields import Fields
from triton_worker.models.decoder.config import DecoderConfig, check_rules, decoder_rules
from triton_worker.models.decoder.config_nemo import head_dim_of, read_decoder

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# NeMo names OpenAI's tower and stores no size of it; sizes as in config.json on the hub.
CLIP_TOWERS: dict[str, dict[str, int]] = {
    "clip-vit-large-patch14-336": {
        "num_layers": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096,
        "image_size": 336, "patch_size": 14,
    },
    "clip-vit-large-patch14": {
        "num_layers": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096,
        "image_size": 224, "patch_size": 14,
    },
}  # fmt: skip
_LARGE_336 = CLIP_TOWERS["clip-vit-large-patch14-336"]

_LLAMA2_7B: dict[str, Any] = {
    "num_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_query_groups": 32, "ffn_hidden_size": 11008,
}  # fmt: skip
_LLAMA2_13B: dict[str, Any] = {
    "num_layers": 40, "hidden_size": 5120, "num_attention_heads": 40, "num_query_groups": 40, "ffn_hidden_size": 13824,
}  # fmt: skip
# From nemo.collections.vlm.neva.model.llava and nemo.collections.llm.gpt.model.llama, by class.
_MODEL_PRESETS = {"Llava15Config7B": _LLAMA2_7B, "Llava15Config13B": _LLAMA2_13B}
_LANGUAGE_CLASSES: Mapping[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Llama2Config7B": _LLAMA2_7B,
    "Llama2Config13B": _LLAMA2_13B,
}


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's vision tower (arXiv:2103.00020). Of `num_layers`, the first `layers_used` are run."""

    num_layers: int
    layers_used: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    norm_eps: float = 1e-5
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD

    @property
    def side(self) -> int:
        """Patches along a side of a picture."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class LlavaConfig:
    text: DecoderConfig
    vision: ClipConfig


def read_config(checkpoint: Checkpoint) -> LlavaConfig:
    """Raises CheckpointError where the checkpoint lacks a size, or holds one that our model cannot have."""
    if checkpoint.layout == "nemo":
        file = checkpoint.path / "context" / "io.json"
        top = Fields(checkpoint.config, file, "model.").section("config")
        config = LlavaConfig(_text_from_nemo(top, checkpoint), _vision_from_nemo(top, checkpoint))
    else:
        file = checkpoint.path / "config.json"
        top = Fields(checkpoint.config, file)
        config = LlavaConfig(_text_from_huggingface(top), _vision_from_huggingface(top, checkpoint))
    _check(config, file)
    return config


def _text_from_huggingface(top: Fields) -> DecoderConfig:
    """The defaults are those of transformers' LlamaConfig, which hub files leave out."""
    fields = top.section("text_config")
    fields.only("model_type", "llama")
    fields.only("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias"):
        if fields.flag(name, False):
            raise fields.error(name, "only projections without a bias are supported")
    if fields.has("rope_scaling"):
        raise fields.error("rope_scaling", "only unscaled positions are supported")
    rope = fields.section("rope_parameters")
    rope.only("rope_type", "default")
    hidden_size, num_heads = fields.integer("hidden_size", 4096), fields.integer("num_attention_heads", 32)
    head_dim = fields.integer("head_dim", max(1, hidden_size // num_heads))
    return DecoderConfig(
        num_layers=fields.integer("num_hidden_layers", 32),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size", 11008),
        vocab_size=fields.integer("vocab_size", 32000),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=rope.number("rope_theta", fields.number("rope_theta", 10000.0)),
        rope_sections=(head_dim // 2, 0, 0),
        tied_embeddings=top.flag("tie_word_embeddings", False) or fields.flag("tie_word_embeddings", False),
        qkv_bias=False,
    )


def _vision_from_huggingface(top: Fields, checkpoint: Checkpoint) -> ClipConfig:
    """The defaults are those of transformers' LlavaConfig."""
    top.only("projector_hidden_act", "gelu")
    top.only("vision_feature_select_strategy", "default")
    if not top.flag("multimodal_projector_bias", True):
        raise top.error("multimodal_projector_bias", "a projector with biases was expected")
    fields = top.section("vision_config")
    fields.only("model_type", "clip_vision_model")
    fields.only("hidden_act", "quick_gelu")
    num_layers = fields.integer("num_hidden_layers", _LARGE_336["num_layers"])
    return ClipConfig(
        num_layers=num_layers,
        layers_used=_layers_used(top, num_layers),
        hidden_size=fields.integer("hidden_size", _LARGE_336["hidden_size"]),
        num_heads=fields.integer("num_attention_heads", _LARGE_336["num_heads"]),
        intermediate_size=fields.integer("intermediate_size", _LARGE_336["intermediate_size"]),
        image_size=fields.integer("image_size", _LARGE_336["image_size"]),
        patch_size=fields.integer("patch_size", _LARGE_336["patch_size"]),
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        **_normalisation(checkpoint),
    )


def _text_from_nemo(top: Fields, checkpoint: Checkpoint) -> DecoderConfig:
    """The defaults are those of NeMo's LlamaConfig."""
    model_preset = _MODEL_PRESETS.get(top.class_name, {})
    target = top.section("language_transformer_config").class_name or "LlamaConfig"
    if target not in _LANGUAGE_CLASSES:
        known = ", ".join(_LANGUAGE_CLASSES)
        raise top.error("language_transformer_config", f"language models that can be served: {known}; not {target}")
    fields = top.section("language_transformer_config", {**model_preset, **_LANGUAGE_CLASSES[target]})
    return read_decoder(
        checkpoint,
        fields,
        norm_eps=1e-5,
        rope_theta=10000.0,
        rope_sections=(head_dim_of(fields) // 2, 0, 0),
        qkv_bias=False,
    )


def _vision_from_nemo(top: Fields, checkpoint: Checkpoint) -> ClipConfig:
    if not top.flag("drop_vision_class_token", True):
        raise top.error("drop_vision_class_token", "only embeddings without the class token are supported")
    fields = top.section("vision_transformer_config")
    target = fields.class_name or "HFCLIPVisionConfig"
    if target == "HFCLIPVisionConfig":
        name = fields.text("pretrained_model_name_or_path", "openai/clip-vit-large-patch14-336")
        if Path(name).name not in CLIP_TOWERS:
            raise fields.error("pretrained_model_name_or_path", f"towers that can be served: {', '.join(CLIP_TOWERS)}")
        sizes = CLIP_TOWERS[Path(name).name]
    elif target in ("CLIPViTConfig", "CLIPViTL_14_336_Config"):
        fields.only("vision_model_type", "clip")
        sizes = {
            "num_layers": fields.integer("num_layers", _LARGE_336["num_layers"]),
            "hidden_size": fields.integer("hidden_size", _LARGE_336["hidden_size"]),
            "num_heads": fields.integer("num_attention_heads", _LARGE_336["num_heads"]),
            "intermediate_size": fields.integer("ffn_hidden_size", _LARGE_336["intermediate_size"]),
            "image_size": fields.integer("img_h", _LARGE_336["image_size"]),
            "patch_size": fields.integer("patch_dim", _LARGE_336["patch_size"]),
        }
    else:
        raise top.error("vision_transformer_config", f"only CLIP's vision towers can be served, not {target}")
    layers_used = _layers_used(top, sizes["num_layers"])
    norm_eps = fields.number("layernorm_epsilon", 1e-5)
    given: dict[str, Any] = {**sizes, **_normalisation(checkpoint)}
    return ClipConfig(layers_used=layers_used, norm_eps=norm_eps, **given)


def _layers_used(top: Fields, num_layers: int) -> int:
    """`vision_feature_layer` counts from the patches before the first layer, or back from the last layer."""
    layer = top.signed_integer("vision_feature_layer", -2)
    used = layer if layer >= 0 else num_layers + 1 + layer
    if not 1 <= used <= num_layers:
        raise top.error("vision_feature_layer", f"one of the tower's {num_layers} layers was expected")
    return used


def _normalisation(checkpoint: Checkpoint) -> dict[str, Any]:
    file = checkpoint.tokenizer_directory / "preprocessor_config.json"
    image = Fields(checkpoint.image_processor or {}, file)
    return {
        "image_mean": image.numbers("image_mean", CLIP_MEAN),
        "image_std": image.numbers("image_std", CLIP_STD),
    }


def _check(config: LlavaConfig, file: Path) -> None:
    vision = config.vision
    rules = (
        *decoder_rules(config.text),
        (vision.hidden_size % vision.num_heads == 0, "the vision width divides evenly among its attention heads"),
        (vision.image_size % vision.patch_size == 0, "pictures that are a whole number of patches wide"),
    )
    check_rules(rules, file)
