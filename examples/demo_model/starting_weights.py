"""The weights of a finished run under Hugging Face's names, so that training can go on from the stored checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.registry import load_model

# Names in our model -> in transformers'. Longer ones first, since parts of names are replaced.
_RENAMED = (
    ("vision.patch_embed.weight", "model.visual.patch_embed.proj.weight"),
    ("vision.merger.norm.", "model.visual.merger.ln_q."),
    ("vision.merger.up_proj.", "model.visual.merger.mlp.0."),
    ("vision.merger.down_proj.", "model.visual.merger.mlp.2."),
    ("vision.blocks.", "model.visual.blocks."),
    ("decoder.", "model.language_model."),
)
_RENAMED_IN_DECODER = (
    ("input_norm", "input_layernorm"),
    ("mlp_norm", "post_attention_layernorm"),
    ("output_proj", "self_attn.o_proj"),
)
_RENAMED_IN_VISION = (
    ("attention_norm", "norm1"),
    ("mlp_norm", "norm2"),
    ("qkv_proj", "attn.qkv"),
    ("output_proj", "attn.proj"),
)


def starting_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Every parameter of the checkpoint (NeMo 2.0 or Hugging Face) in float32. Raises CheckpointError."""
    model = load_model(open_checkpoint(checkpoint), torch.float32, torch.device("cpu"))
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} is no torch module, so it has no parameters to start from.")
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        weights |= _split(_renamed(name), parameter.detach())
    return weights


def _renamed(name: str) -> str:
    for ours, theirs in _RENAMED_IN_VISION if name.startswith("vision.") else _RENAMED_IN_DECODER:
        name = name.replace(f".{ours}.", f".{theirs}.")
    for ours, theirs in _RENAMED:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    raise ValueError(f"There is no parameter like {name!r} in the demo model.")


def _split(name: str, values: Tensor) -> dict[str, Tensor]:
    """Our fused projections as transformers' separate ones. The demo model has as many key-value heads as heads."""
    if ".gate_up_proj." in name:
        parts = ("gate", "up")
        return {name.replace("gate_up", part): half for part, half in zip(parts, values.chunk(2), strict=True)}
    if ".qkv_proj." in name:
        thirds = zip("qkv", values.chunk(3), strict=True)
        return {name.replace(".qkv_proj", f".self_attn.{part}_proj"): third for part, third in thirds}
    if name.endswith("patch_embed.proj.weight"):
        return {name: values.view(len(values), 3, 2, 14, 14)}
    return {name: values}
