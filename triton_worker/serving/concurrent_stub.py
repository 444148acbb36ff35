"""``model.py`` of the reference model in Triton's repository: runs in Triton's Python backend, beside PyTriton's own.

PyTriton's ``model.py``, there under the name ``pytriton_model``, answers calls of a decoupled model through response
senders, any number at once, and of others by returning from ``execute``, one batch at a time. Triton itself takes a
response sender from either kind, as long as each call is answered once. So this model is told that it is decoupled,
while Triton knows that it is not and lets plain HTTP reach it.
"""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # comes with the backend

from . import pytriton_model  # type: ignore[attr-defined]  # comes with PyTriton

ERROR_TENSOR = "error"
"""In place of the outputs: a code of ``TritonError`` and a sentence. An exception would send a traceback."""


class TritonPythonModel(pytriton_model.TritonPythonModel):  # type: ignore[misc]
    """PyTriton's model, with concurrent calls and errors of one sentence."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called by Triton once, before the first call."""
        pytriton_model._wrap_response = _with_errors(pytriton_model._wrap_response)
        config = {**json.loads(args["model_config"]), "model_transaction_policy": {"decoupled": True}}
        super().initialize({**args, "model_config": json.dumps(config)})


def _with_errors(wrap_response: Any) -> Any:
    def wrap(response: Any, *arguments: Any) -> Any:
        if ERROR_TENSOR not in response.data:
            return wrap_response(response, *arguments)
        code, sentence = (bytes(value).decode() for value in response.data[ERROR_TENSOR])
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(sentence, getattr(pb_utils.TritonError, code)))

    return wrap
