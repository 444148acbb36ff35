"""Random Llama 3.2 Vision models with a tokenizer of Llama 3's kind, made where a test needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from tests.triton_worker.models.reference import Prompt, randomise

IMAGE = VOCABULARY = 448
SIDE, PATCH = 56, 14
TILE_TOKENS = (SIDE // PATCH) ** 2 + 1
INTERMEDIATE_LAYERS = [1, 2]
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def save_random(directory: Path, kv_heads: int = 2, **text_settings: Any) -> Path:
    """A random model as transformers saves it: 8 layers that attend to themselves, and 2 to pictures."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 4, "num_global_layers": 2,
        "attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "vision_output_dim": 96,
        "intermediate_layers_indices": INTERMEDIATE_LAYERS,
    }  # fmt: skip
    rope = {
        "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    text = {
        "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 10, "num_attention_heads": 4,
        "num_key_value_heads": kv_heads, "vocab_size": VOCABULARY, "max_position_embeddings": 1024,
        "cross_attention_layers": [3, 8], "rope_parameters": rope, "pad_token_id": 0,
        "bos_token_id": 256, "eos_token_id": [257, 260], **text_settings,
    }  # fmt: skip
    model = MllamaForConditionalGeneration(
        MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    )
    randomise(model)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def save_tokenizer(directory: Path) -> None:
    """As that of Llama 3.2 Vision: byte-level BPE, and a picture's token behind the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fillers = [f"<|reserved_{at}|>" for at in range(len(alphabet) + len(SPECIAL), IMAGE)]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (*SPECIAL, *fillers, "<|image|>")]
    )
    assert tokenizer.token_to_id("<|image|>") == IMAGE
    begin = SPECIAL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, len(alphabet))]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": begin, "eos_token": "<|eot_id|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def make_prompt(*parts: int | tuple[int, int], seed: int = 0) -> Prompt:
    """As many tokens of random text, or a random picture of so many rows and columns of tiles."""
    generator = torch.Generator().manual_seed(seed)
    token_ids: list[int] = []
    pictures = []
    for part in parts:
        if isinstance(part, int):
            token_ids += torch.randint(0, IMAGE, (part,), generator=generator).tolist()
        else:
            token_ids.append(IMAGE)
            size = (part[0] * SIDE, part[1] * SIDE, 3)
            pictures.append(torch.randint(0, 256, size, generator=generator, dtype=torch.uint8))
    return Prompt(token_ids, pictures, IMAGE, unit=SIDE)


def reference_model(directory: Path) -> MllamaForConditionalGeneration:
    """Transformers' model, put right where it leaves Meta's.

    It takes what comes out of each intermediate layer of the tower, where Meta's takes what goes in, as NeMo and
    transformers 4.51 do. And its tokens before the first picture attend to all pictures: Meta's and NeMo's multiply the
    result with full_text_row_masked_out_mask, transformers only that of the layer's other half.
    """
    model = MllamaForConditionalGeneration.from_pretrained(directory, dtype=torch.float32).eval()
    tower = model.model.vision_model
    tower.intermediate_layers_indices = [index - 1 for index in tower.intermediate_layers_indices]
    for layer in model.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            _mask_attention(layer)
    return model


def _mask_attention(layer: torch.nn.Module) -> None:
    seen: list[Tensor] = []

    def remember(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen[:] = [kwargs["full_text_row_masked_out_mask"][:, 0]]

    def mask(module: torch.nn.Module, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        return seen[0] * output[0], output[1]

    layer.register_forward_pre_hook(remember, with_kwargs=True)
    layer.cross_attn.register_forward_hook(mask)


def their_inputs(prompt: Prompt) -> dict[str, Tensor]:
    token_ids = torch.tensor([prompt.token_ids])
    inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
    if prompt.pictures:
        processor = MllamaImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            image_mean=[0.48145466, 0.4578275, 0.40821073],
            image_std=[0.26862954, 0.26130258, 0.27577711],
        )
        processed = processor([[p.permute(2, 0, 1).numpy() for p in prompt.pictures]], return_tensors="pt")
        seen = convert_sparse_cross_attention_mask_to_dense(
            [get_cross_attention_token_mask(prompt.token_ids, IMAGE)],
            num_tiles=processed.pop("num_tiles"), max_num_tiles=4, length=len(prompt.token_ids),
        )  # fmt: skip
        inputs |= {**processed, "cross_attention_mask": torch.tensor(seen)}
    return inputs


@torch.inference_mode()
def their_greedy(model: MllamaForConditionalGeneration, prompt: Prompt, new_tokens: int) -> tuple[Tensor, list[int]]:
    inputs = their_inputs(prompt)
    logits = model(**inputs).logits[0]
    generated = model.generate(
        **inputs, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return logits, generated[0, len(prompt.token_ids) :].tolist()
