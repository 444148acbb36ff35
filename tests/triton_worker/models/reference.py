"""Hugging Face's Qwen2.5-VL beside ours: the same prompt through both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from triton_worker.models.interface import MultimodalModel

FIXTURES = Path(__file__).parents[2] / "fixtures"
NEMO_FIXTURE = FIXTURES / "nemo2-qwen25vl-tiny"
HF_FIXTURE = FIXTURES / "hf-qwen25vl-tiny"


@dataclass(frozen=True)
class Prompt:
    token_ids: list[int]
    pictures: list[Tensor]
    image_token_id: int

    @property
    def grids(self) -> list[tuple[int, int]]:
        return [(p.shape[0] // 28, p.shape[1] // 28) for p in self.pictures]


def make_prompt(sizes: list[tuple[int, int]], image_token_id: int, seed: int = 0, text_tokens: int = 5) -> Prompt:
    """A prompt of random text around random pictures of `sizes` (rows, columns of 28 pixels)."""
    generator = torch.Generator().manual_seed(seed)
    token_ids: list[int] = []
    pictures = []
    for rows, columns in sizes:
        token_ids += torch.randint(0, 400, (text_tokens,), generator=generator).tolist()
        token_ids += [image_token_id] * (rows * columns)
        size = (rows * 28, columns * 28, 3)
        pictures.append(torch.randint(0, 256, size, generator=generator, dtype=torch.uint8))
    token_ids += torch.randint(0, 400, (text_tokens,), generator=generator).tolist()
    return Prompt(token_ids, pictures, image_token_id)


class ListAttention:
    """Plain causal attention of one sequence, with a cache that grows by concatenation."""

    def __init__(self) -> None:
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer in self._cache:
            old_key, old_value = self._cache[layer]
            key, value = torch.cat((old_key, key)), torch.cat((old_value, value))
        self._cache[layer] = key, value
        mask = torch.ones(len(query), len(key), dtype=torch.bool, device=query.device).tril(len(key) - len(query))
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).squeeze(0).transpose(0, 1)


def prefill(model: MultimodalModel, prompt: Prompt, attention: ListAttention) -> tuple[Tensor, int]:
    """Logits of every prompt token, and the next position."""
    token_ids = torch.tensor(prompt.token_ids, device=model.device)
    embeddings = model.embed_tokens(token_ids)
    if prompt.pictures:
        embeddings[token_ids == prompt.image_token_id] = torch.cat(model.encode_pictures(prompt.pictures))
    positions, next_position = model.prompt_positions(prompt.token_ids, prompt.grids, prompt.image_token_id)
    return model.logits(model.forward(embeddings, positions.to(model.device), attention)), next_position


@torch.inference_mode()
def our_greedy(model: MultimodalModel, prompt: Prompt, new_tokens: int) -> tuple[Tensor, list[int]]:
    """Logits of the prompt, and the tokens that follow it."""
    attention = ListAttention()
    logits, position = prefill(model, prompt, attention)
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < new_tokens:
        embedding = model.embed_tokens(torch.tensor(tokens[-1:]))
        hidden = model.forward(embedding, torch.full((3, 1), position), attention)
        tokens.append(int(model.logits(hidden)[-1].argmax()))
        position += 1
    return logits, tokens


@torch.inference_mode()
def their_greedy(
    model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt, new_tokens: int, vocabulary: int | None = None
) -> tuple[Tensor, list[int]]:
    """Logits of the prompt, and the tokens that follow it; of the first `vocabulary` ones, where that is given."""
    token_ids = torch.tensor([prompt.token_ids])
    inputs = {"input_ids": token_ids, "mm_token_type_ids": (token_ids == prompt.image_token_id).int()}
    if prompt.pictures:
        processor = Qwen2VLImageProcessorPil(do_resize=False)
        processed = processor([p.permute(2, 0, 1).numpy() for p in prompt.pictures], return_tensors="pt")
        inputs |= {"pixel_values": processed["pixel_values"], "image_grid_thw": processed["image_grid_thw"]}
    logits = model(**inputs).logits[0]
    padding = list(range(vocabulary or logits.shape[-1], logits.shape[-1]))
    generated = model.generate(
        **inputs, suppress_tokens=padding or None, attention_mask=torch.ones_like(token_ids), do_sample=False,
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return logits, generated[0, len(prompt.token_ids) :].tolist()
