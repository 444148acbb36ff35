"""How messages lie in Triton tensors, and under which names Triton knows them.

A message is one MessagePack document in one UINT8 tensor of shape ``[bytes]``. UINT8, not BYTES: it crosses PyTriton's
shared-memory store without an element-wise copy, three times as fast for a large picture.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

CONTROL_MODEL = "gateway_control"
"""Unary: ``Control`` in, ``ControlReply`` out."""
DELTAS_MODEL = "gateway_deltas"
"""Decoupled: ``OpenSession`` in, ``DeltaBatch`` out, again and again."""
MESSAGE_TENSOR = "message"

Message = TypeVar("Message")


class MessageError(ValueError):
    """Bytes that are not the message they should be; the text names the field."""


def encode(message: msgspec.Struct) -> bytes:
    """MessagePack bytes of a message."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes | memoryview, kind: type[Message]) -> Message:
    """The message of type ``kind`` in ``data``.

    Raises:
        MessageError: the bytes are no MessagePack, or do not fit the type.
    """
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MessageError(f"not a {kind.__name__} message: {error}") from error


def to_tensor(message: msgspec.Struct) -> NDArray[np.uint8]:
    """The message as the tensor Triton carries: uint8 ``[bytes]``."""
    return np.frombuffer(encode(message), dtype=np.uint8)


def from_tensor(tensor: NDArray[Any], kind: type[Message]) -> Message:
    """The message of type ``kind`` in a uint8 tensor.

    Raises:
        MessageError: see :func:`decode`.
    """
    if tensor.dtype != np.uint8:
        raise MessageError(f"a {kind.__name__} message is a uint8 tensor, not {tensor.dtype}")
    return decode(np.ascontiguousarray(tensor).reshape(-1).data, kind)
