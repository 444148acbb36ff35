"""Import after NeMo: its code for Llama 3.2 Vision states some numbers, which are made those of the tiny model.

They are the width of the vision tower and its intermediate layers; and it takes a GPU and pictures of bfloat16 for
granted. Nothing else of that code is changed. And megatron-core's fused GELU, which NeMo asks for in this tower, is an
approximation by tanh, in training and in inference: here it is the GELU that Meta's model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import megatron.core.transformer.mlp as megatron_mlp
from nemo.collections.vlm.mllama.model.base import CrossAttentionVisionModel, MLlamaBaseModel
from torch.nn.functional import gelu


def _restate(function: Callable[..., Any], constants: Mapping[Any, Any], names: Mapping[str, str]) -> None:
    code = function.__code__
    function.__code__ = code.replace(
        co_consts=tuple(constants.get(c, c) if type(c) in (int, str) else c for c in code.co_consts),
        co_names=tuple(names.get(name, name) for name in code.co_names),
    )


_restate(CrossAttentionVisionModel.__init__, {1280: 32, "3,7,15,23,30": "1,2"}, {})
_restate(CrossAttentionVisionModel.forward, {}, {"bfloat16": "float32"})
_restate(MLlamaBaseModel.compute_xattn_caches_masks, {"cuda": "cpu"}, {})
megatron_mlp.bias_gelu_impl = lambda values, bias: gelu(values + bias)
