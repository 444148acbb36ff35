"""The two Triton calls that the protocol needs, over one gRPC channel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
import msgspec
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from protocol.messages import Control, ControlReply, DeltaBatch, OpenSession
from protocol.wire import CONTROL_MODEL, DELTAS_MODEL, MESSAGE_TENSOR, MessageError, from_tensor, to_tensor

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # the gateway's body limit is the bound
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # the worker is ours, whatever http_proxy says
    ("grpc.use_local_subchannel_pool", 1),  # a new link starts without the back-off of the last one
]


class LinkError(Exception):
    """The worker cannot be reached, or does not speak the protocol. For the log, not for callers."""


def _said(error: Exception) -> str:
    """An error in one line: a gRPC error prints itself over many."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error)


@dataclass(frozen=True)
class TritonHealth:
    """What a Triton says of itself; no to everything when it does not answer."""

    server_ready: bool = False
    models_ready: bool = False


class TritonLink:
    """One channel to Triton. It does not reconnect: whoever needs another one makes another one."""

    def __init__(self, url: str) -> None:
        self._client = triton.InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)

    async def control(self, message: Control, timeout: float) -> ControlReply:
        """Raises :class:`LinkError`."""
        try:
            result = await self._client.infer(CONTROL_MODEL, [_input(message)], client_timeout=timeout)
            tensor = result.as_numpy(MESSAGE_TENSOR)
            if tensor is None:
                raise LinkError("control call failed: an answer without a message")
            reply = from_tensor(tensor, ControlReply)
        except (InferenceServerException, grpc.RpcError, MessageError) as error:
            raise LinkError(f"control call failed: {_said(error)}") from error
        if reply.session_id != message.session_id:
            raise LinkError("control call failed: Triton gave the reply to another call")
        return reply

    async def deltas(self, opening: OpenSession) -> AsyncGenerator[DeltaBatch, None]:
        """All that the worker says to this session, until the stream ends. Raises :class:`LinkError`."""
        over = asyncio.Event()
        responses = self._client.stream_infer(_opening_requests(opening, over))
        try:
            async for result, error in responses:
                if error is not None:
                    raise LinkError(f"deltas stream failed: {error}")
                tensor = result.as_numpy(MESSAGE_TENSOR)
                if tensor is None:  # Triton's empty response after the last one
                    return
                yield from_tensor(tensor, DeltaBatch)
        except (grpc.RpcError, MessageError) as error:
            raise LinkError(f"deltas stream failed: {_said(error)}") from error
        finally:
            over.set()
            responses.cancel()

    async def health(self, models: Iterable[str], timeout: float) -> TritonHealth:
        """Whether Triton and ``models`` are ready by its own word, which says nothing of what is behind them."""
        try:
            if not await self._client.is_server_ready(client_timeout=timeout):
                return TritonHealth()
            asking = (self._client.is_model_ready(model, client_timeout=timeout) for model in models)
            return TritonHealth(server_ready=True, models_ready=all(await asyncio.gather(*asking)))
        except (InferenceServerException, grpc.RpcError):
            return TritonHealth()

    async def close(self) -> None:
        await self._client.close()


async def _opening_requests(opening: OpenSession, over: asyncio.Event) -> AsyncIterator[dict[str, Any]]:
    yield {"model_name": DELTAS_MODEL, "inputs": [_input(opening)]}
    await over.wait()  # our half stays open for as long as the stream lives


def _input(message: msgspec.Struct) -> Any:
    tensor = to_tensor(message)
    infer_input = triton.InferInput(MESSAGE_TENSOR, list(tensor.shape), "UINT8")
    return infer_input.set_data_from_numpy(tensor)
