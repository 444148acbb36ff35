"""The families as random tiny models, and their prompts as NeMo's models take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.triton_worker.models import llava, mllama, reference, test_qwen2_vl
from tests.triton_worker.models.reference import HF_FIXTURE, Prompt
from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.registry import load_model

# What NeMo's models know a picture's tokens by.
_NEMO_IMAGE = -200


@dataclass(frozen=True)
class Family:
    """source: makes the Hugging Face directory. theirs: transformers' model of it. their_greedy: logits and tokens."""

    name: str
    source: Callable[[Path], Path]
    theirs: Callable[[Path], Any]
    prompt: Prompt
    nemo_inputs: Callable[[Path, Prompt], dict[str, Tensor]]
    their_greedy: Callable[[Any, Prompt, int], tuple[Tensor, list[int]]]

    def expected(self, source: Path, new_tokens: int) -> tuple[Tensor, list[int]]:
        """Logits [S, V] and greedy tokens of transformers in float32."""
        return self.their_greedy(self.theirs(source), self.prompt, new_tokens)


def _reference(model: type[Any]) -> Callable[[Path], Any]:
    return lambda source: model.from_pretrained(source, dtype=torch.float32).eval()


def _qwen_inputs(source: Path, prompt: Prompt) -> dict[str, Tensor]:
    # Positions are passed: NeMo computes them from token ids that only the published tokenizer has.
    model = load_model(open_checkpoint(source), torch.float32, torch.device("cpu"))
    positions, _ = model.prompt_positions(prompt.token_ids, prompt.grids, prompt.image_token_id)
    token_ids = torch.tensor([prompt.token_ids])
    pictures = [picture.permute(2, 0, 1).numpy() for picture in prompt.pictures]
    processed = Qwen2VLImageProcessorPil(do_resize=False)(pictures, return_tensors="pt")
    return {
        "input_ids": token_ids.masked_fill(token_ids == prompt.image_token_id, _NEMO_IMAGE),
        "position_ids": positions[:, None],
        "pixel_values": processed["pixel_values"],
        "image_grid_thw": processed["image_grid_thw"],
    }


def _llava_inputs(source: Path, prompt: Prompt) -> dict[str, Tensor]:
    """NeMo puts all of a picture's tokens where one stands."""
    token_ids = torch.tensor(prompt.token_ids)
    picture = token_ids == prompt.image_token_id
    follows = torch.cat((torch.zeros(1, dtype=torch.bool), picture[:-1]))
    token_ids = token_ids.masked_fill(picture, _NEMO_IMAGE)[~(picture & follows)][None]
    return {
        "input_ids": token_ids,
        "position_ids": torch.arange(token_ids.shape[1])[None],
        "images": llava.pixel_values(prompt.pictures),
    }


def _mllama_inputs(source: Path, prompt: Prompt) -> dict[str, Tensor]:
    """NeMo is told from where to where each picture is seen, and how many tiles it has."""
    inputs = mllama.their_inputs(prompt)
    ends = mllama.get_cross_attention_token_mask(prompt.token_ids, prompt.image_token_id)
    return {
        "tokens": inputs["input_ids"],
        "position_ids": torch.arange(len(prompt.token_ids))[None],
        "batch_images": inputs["pixel_values"],
        "aspect_ratio_ids": inputs["aspect_ratio_ids"],
        "num_chunks": inputs["aspect_ratio_mask"].sum(-1),
        "batch_masks": torch.tensor([ends]),
    }


def save_clip_tower(directory: Path) -> None:
    """A random tower where NeMo's process looks for the one that a checkpoint names."""
    tower = llava.TOWER
    config = CLIPVisionConfig(
        hidden_size=tower["hidden_size"], intermediate_size=tower["intermediate_size"],
        num_hidden_layers=tower["num_layers"], num_attention_heads=tower["num_heads"],
        image_size=tower["image_size"], patch_size=tower["patch_size"], projection_dim=32,
    )  # fmt: skip
    CLIPVisionModel(config).save_pretrained(directory)


QWEN2_5_VL = Family(
    "qwen2_5_vl",
    lambda directory: HF_FIXTURE,
    _reference(Qwen2_5_VLForConditionalGeneration),
    reference.make_prompt([(5, 7), (8, 4)], 412),
    _qwen_inputs,
    reference.their_greedy,
)
QWEN2_VL = Family(
    "qwen2_vl",
    test_qwen2_vl.save_random,
    _reference(Qwen2VLForConditionalGeneration),
    reference.make_prompt([(5, 7), (8, 4)], 412),
    _qwen_inputs,
    reference.their_greedy,
)
LLAVA = Family(
    "llava",
    llava.save_random,  # whose tokenizer has no class of its own
    _reference(LlavaForConditionalGeneration),
    llava.make_prompt(2, seed=0),
    _llava_inputs,
    llava.their_greedy,
)
MLLAMA = Family(
    "mllama",
    mllama.save_random,
    mllama.reference_model,
    mllama.make_prompt(5, (2, 2), 5, (1, 2), (1, 1), 7),
    _mllama_inputs,
    mllama.their_greedy,
)
