"""Hugging Face's Qwen2-VL and Qwen2.5-VL beside ours: the same prompt through both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from protocol.messages import SamplingParameters
from triton_worker.engine.engine import Engine
from triton_worker.engine.grammar import GrammarCompiler
from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import Generate, Picture
from triton_worker.models.decoder.rope import Rotary, apply_rotary
from triton_worker.models.interface import MultimodalModel
from triton_worker.processing.tokenizer import Tokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures"
NEMO_FIXTURE = FIXTURES / "nemo2-qwen25vl-tiny"
HF_FIXTURE = FIXTURES / "hf-qwen25vl-tiny"


@dataclass(frozen=True)
class Prompt:
    token_ids: list[int]
    pictures: list[Tensor]
    image_token_id: int
    unit: int = 28

    @property
    def grids(self) -> list[tuple[int, int]]:
        return [(p.shape[0] // self.unit, p.shape[1] // self.unit) for p in self.pictures]


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

    def __init__(self, kv_heads: int) -> None:
        self._kv_heads = kv_heads
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, heads: Tensor, rotary: Rotary) -> Tensor:
        turned = apply_rotary(heads[:, : -self._kv_heads], rotary)
        query, key, value = turned[:, : -self._kv_heads], turned[:, -self._kv_heads :], heads[:, -self._kv_heads :]
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
    attention = ListAttention(model.num_kv_heads)
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
    model: Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration,
    prompt: Prompt,
    new_tokens: int,
    vocabulary: int | None = None,
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


def randomise(model: torch.nn.Module) -> None:
    """Weights large enough for the logits to differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)


def engine_greedy(
    model: MultimodalModel, prompts: list[Prompt], max_tokens: int, tokenizer: Tokenizer | None = None
) -> list[list[int]]:
    """What the engine answers to all of them together; in tokens that ``tokenizer`` has, where one is given."""
    block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
    limits = EngineLimits(kv_cache_bytes=200 * block_bytes, context_length=400, max_sequences=8)
    grammars = None
    if tokenizer is not None:
        grammars = GrammarCompiler(tokenizer.to_json(), tokenizer.size, tokenizer.end_token_ids, 1)
    engine = Engine(model, prompts[0].image_token_id, 400, limits, grammars)
    engine.warm_up()
    greedy = SamplingParameters(temperature=0.0)
    for index, prompt in enumerate(prompts):
        pictures = tuple(Picture.of(np.asarray(picture)) for picture in prompt.pictures)
        engine.add(Generate(str(index), tuple(prompt.token_ids), pictures, greedy, max_tokens, 0, frozenset()))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for token in engine.step().tokens:
            answers[int(token.request_id)].append(token.token_id)
    return answers
