"""One answer as it is generated, over Triton's gRPC port: the protocol of the gateway, spoken for a single request."""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import msgspec
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from clients.rest.errors import ConnectionFailed, MultimodalError, TimedOut
from protocol import wire
from protocol.messages import (
    HEARTBEAT_SECONDS,
    LEASE_SECONDS,
    Cancel,
    Control,
    ControlReply,
    DeltaBatch,
    EndDelta,
    OpenSession,
    Submit,
)

_CALL_SECONDS = 30.0
_PAUSE_SECONDS = 0.2
_RENEW_SECONDS = LEASE_SECONDS / 3
_SILENCE_SECONDS = 3 * HEARTBEAT_SECONDS
_CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # Triton is ours, whatever http_proxy says
]

Reply = TypeVar("Reply")


def stream_answer(address: str, submit: Submit, init_timeout: float) -> Generator[str, None, None]:
    """The pieces of the answer's text. Closed early, it cancels the request.

    Args:
        address: ``host:port`` of Triton's gRPC port.
        submit: The request, with one choice.
        init_timeout: Seconds to wait for Triton and the model.

    Raises:
        MultimodalError: one of its subclasses; the message is a sentence.
    """
    _check(submit)
    with _session(address, init_timeout) as session:
        session.control(submit)
        try:
            yield from session.answer()
        finally:
            session.leave(submit.request_id)


def _check(submit: Submit) -> None:
    """The worker drops a message that it cannot decode; its caller is told here what was wrong."""
    try:
        wire.decode(wire.encode(submit), Submit)
    except wire.MessageError as error:
        field = str(error).rpartition(".")[2].strip("`")
        raise MultimodalError(f"{field} is out of its range.") from None


@contextmanager
def _session(address: str, init_timeout: float) -> Iterator[_Session]:
    deadline = time.monotonic() + init_timeout
    while True:
        session = _Session(address)
        try:
            session.open(deadline)
            break
        except ConnectionFailed:
            session.close()
            if time.monotonic() >= deadline:
                raise
            time.sleep(_PAUSE_SECONDS)
        except BaseException:
            session.close()
            raise
    try:
        yield session
    finally:
        session.close()


class _Session:
    """A deltas stream and the control calls that belong to it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._id = uuid.uuid4().hex
        self._arrived: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()
        self._client = triton.InferenceServerClient(address, channel_args=_CHANNEL)
        self._renewed_at = time.monotonic()
        self._ended = False

    def open(self, deadline: float) -> None:
        """Returns when a generation would succeed."""
        self._start_stream(OpenSession(self._id))
        while True:
            status = self._next_batch().status
            if status is not None and status.ready:
                return
            if time.monotonic() >= deadline:
                raise TimedOut(f"The model behind Triton at {self._address} is not ready.")

    def answer(self) -> Iterator[str]:
        """The text of this session's one request, until its terminal delta."""
        while True:
            for delta in self._next_batch().deltas:
                if not isinstance(delta, EndDelta):
                    yield delta.text
                    continue
                self._ended = True
                if delta.error is not None:
                    raise MultimodalError(delta.error.message)
                return

    def leave(self, request_id: str) -> None:
        """Cancel the request, unless it has ended."""
        if not self._ended:
            self.control(Cancel(request_id))

    def control(self, *messages: Submit | Cancel) -> None:
        """Send messages; none at all only renew the session's lease."""
        self._renewed_at = time.monotonic()
        try:
            result = self._client.infer(
                wire.CONTROL_MODEL, [_tensor(Control(self._id, messages))], client_timeout=_CALL_SECONDS
            )
        except (InferenceServerException, grpc.RpcError):
            raise self._lost() from None
        reply = _message(result, ControlReply)
        if reply.session_id != self._id or not reply.session_known:
            raise self._lost()

    def close(self) -> None:
        """Hang up."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def _start_stream(self, opening: OpenSession) -> None:
        self._client.stop_stream(cancel_requests=True)
        arrived = self._arrived = queue.SimpleQueue()  # what the stream before says of its end stays in its own
        try:
            self._client.start_stream(callback=lambda result, error: arrived.put((result, error)))
            self._client.async_stream_infer(wire.DELTAS_MODEL, [_tensor(opening)])
        except InferenceServerException:
            raise self._lost() from None

    def _next_batch(self) -> DeltaBatch:
        if time.monotonic() - self._renewed_at > _RENEW_SECONDS:
            self.control()
        try:
            result, error = self._arrived.get(timeout=_SILENCE_SECONDS)
        except queue.Empty:
            raise self._lost() from None
        if error is not None:
            raise self._lost()
        batch = _message(result, DeltaBatch)
        if batch.refusal is not None:
            raise MultimodalError(batch.refusal.message)
        if batch.resume:
            self._start_stream(OpenSession(self._id, resume=True))
        return batch

    def _lost(self) -> ConnectionFailed:
        return ConnectionFailed(f"Triton's gRPC port at {self._address} cannot be reached, or it hung up.")


def _tensor(message: msgspec.Struct) -> Any:
    tensor = wire.to_tensor(message)
    infer_input = triton.InferInput(wire.MESSAGE_TENSOR, list(tensor.shape), "UINT8")
    infer_input.set_data_from_numpy(tensor)
    return infer_input


def _message(result: Any, kind: type[Reply]) -> Reply:
    try:
        return wire.from_tensor(result.as_numpy(wire.MESSAGE_TENSOR), kind)
    except (wire.MessageError, AttributeError):
        raise MultimodalError("What answers at Triton's gRPC port is not this project's worker.") from None
