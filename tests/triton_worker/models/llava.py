"""Random LLaVA models with a tokenizer of Llama's kind, made where a test needs them."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.triton_worker.models.reference import Prompt, randomise

IMAGE = 380
VOCABULARY = 448
SIDE, PATCH = 56, 14
TOWER = {
    "num_layers": 4, "hidden_size": 64, "num_heads": 4, "intermediate_size": 96,
    "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip


def save_random(directory: Path, tied: bool = False, kv_heads: int = 2) -> Path:
    """A random model as transformers saves it."""
    torch.manual_seed(0)
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "image_size": SIDE, "patch_size": PATCH, "projection_dim": 32,
    }  # fmt: skip
    text = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": kv_heads, "vocab_size": VOCABULARY, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 1024, "tie_word_embeddings": tied,
    }  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=16)
    model = LlavaForConditionalGeneration(config)
    randomise(model)
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def save_tokenizer(directory: Path) -> None:
    """As that of Llama 2: SentencePiece's spaces, bytes for what it does not know, <s> at the beginning."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.ascii_letters]
    tokens += [".", ",", ":", "?", "!", "'", "he", "▁t", "▁the", "in", "on", "at"]
    merges = [("h", "e"), ("▁", "t"), ("▁t", "he"), ("i", "n"), ("o", "n"), ("a", "t")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = [AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")]
    tokenizer.add_special_tokens(special)
    filler = [AddedToken(f"<filler_{at}>", normalized=False, special=True) for at in range(len(tokens), IMAGE)]
    tokenizer.add_special_tokens([*filler, AddedToken("<image>", normalized=False, special=True)])
    assert tokenizer.token_to_id("<image>") == IMAGE
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def make_prompt(pictures: int, seed: int, text_tokens: int = 5) -> Prompt:
    """Random text around so many random pictures."""
    generator = torch.Generator().manual_seed(seed)

    def text() -> list[int]:
        numbers: list[int] = torch.randint(3, IMAGE, (text_tokens,), generator=generator).tolist()
        return numbers

    token_ids, shown = text(), []
    for _ in range(pictures):
        token_ids += [IMAGE] * (SIDE // PATCH) ** 2 + text()
        shown.append(torch.randint(0, 256, (SIDE, SIDE, 3), generator=generator, dtype=torch.uint8))
    return Prompt(token_ids, shown, IMAGE, unit=PATCH)


def pixel_values(pictures: list[Tensor]) -> Tensor:
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    values: Tensor = processor([p.permute(2, 0, 1).numpy() for p in pictures], return_tensors="pt")["pixel_values"]
    return values


@torch.inference_mode()
def their_greedy(model: LlavaForConditionalGeneration, prompt: Prompt, new_tokens: int) -> tuple[Tensor, list[int]]:
    token_ids = torch.tensor([prompt.token_ids])
    inputs = {"input_ids": token_ids}
    if prompt.pictures:
        inputs["pixel_values"] = pixel_values(prompt.pictures)
    logits = model(**inputs).logits[0]
    generated = model.generate(
        **inputs, attention_mask=torch.ones_like(token_ids), do_sample=False,
        max_new_tokens=new_tokens, min_new_tokens=new_tokens, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return logits, generated[0, len(prompt.token_ids) :].tolist()
