"""Calls over the reference's tensors, as any Triton client makes them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.http as triton

from tests.e2e.deployment import MODEL, Deployment

TYPES = {
    "prompts": "BYTES",
    "images": "BYTES",
    "max_length": "INT64",
    "max_batch_size": "INT64",
    "top_k": "INT64",
    "top_p": "FP32",
    "temperature": "FP32",
    "random_seed": "INT64",
    "apply_chat_template": "BOOL",
}
_DTYPES: dict[str, type] = {"BYTES": np.object_, "INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_}


def infer(deployment: Deployment, **tensors: Sequence[Sequence[Any]]) -> list[str]:
    """One call with these tensors, row by row; the sentences."""
    inputs = []
    for name, rows in tensors.items():
        values = np.array(rows, dtype=_DTYPES[TYPES[name]])
        tensor = triton.InferInput(name, list(values.shape), TYPES[name])
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    with triton.InferenceServerClient(f"127.0.0.1:{deployment.ports['http']}", network_timeout=120) as client:
        sentences = client.infer(MODEL, inputs).as_numpy("sentences")
    assert sentences.shape == (len(tensors["prompts"]), 1)
    return [row[0].decode() for row in sentences]


def ask(deployment: Deployment, prompt: str, *pictures: bytes, **values: Any) -> str:
    """One prompt with its pictures."""
    tensors: dict[str, Any] = {name: [[value]] for name, value in values.items()}
    if pictures:
        tensors["images"] = [[base64.b64encode(picture) for picture in pictures]]
    return infer(deployment, prompts=[[prompt.encode()]], **tensors)[0]
