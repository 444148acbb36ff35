"""Triton, started and bound through PyTriton: the only module that knows it.

What PyTriton 0.7 does under load and faults was measured; the shape of this module follows from it:

- One decoupled response costs about 2 ms of CPU, so one stream a gateway carries the deltas of all its requests.
- A callable that raises sends a traceback to the caller: ours answer faults as data and never raise.
- Each bound model has an event loop of its own; ours hop to the front's loop, where all state lives.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sysconfig
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from protocol import wire
from protocol.messages import Control, ControlReply, DeltaBatch, ErrorCode, OpenSession, RequestError
from triton_worker.serving.front import Front
from triton_worker.serving.settings import TritonAddresses

logger = logging.getLogger(__name__)

_STOP_SECONDS = 8.0
_EXIT_TIMEOUT_SECONDS = 3
"""How long Triton waits for calls in flight when it stops; the front has ended them before."""

Result = TypeVar("Result")
Tensors = dict[str, NDArray[Any]]


class TritonServer:
    """A Triton process whose models are the front's callables."""

    def __init__(
        self, front: Front, loop: asyncio.AbstractEventLoop, addresses: TritonAddresses, workspace: Path
    ) -> None:
        """``loop`` is the front's. ``workspace`` must not exist yet; it is removed by :meth:`stop`."""
        _put_python_library_first()
        self._front = front
        self._loop = loop
        self._triton = Triton(
            workspace=workspace,
            config=TritonConfig(
                http_address=addresses.http_address,
                http_port=addresses.http_port,
                grpc_address=addresses.grpc_address,
                grpc_port=addresses.grpc_port,
                metrics_address=addresses.http_address,
                metrics_port=addresses.metrics_port,
                allow_gpu_metrics=False,  # it complains where there is no GPU; our own metrics cover the engine
                exit_timeout_secs=_EXIT_TIMEOUT_SECONDS,
                # A file, because PyTriton keeps everything printed to the console in memory.
                log_file=workspace.parent / "triton.log",
            ),
        )

    def start(self) -> None:
        """Start Triton and load the models; returns when calls are answered."""
        message = [Tensor(name=wire.MESSAGE_TENSOR, dtype=np.uint8, shape=(-1,))]
        self._triton.bind(
            wire.CONTROL_MODEL, self._control, inputs=message, outputs=message, config=ModelConfig(batching=False)
        )
        self._triton.bind(
            wire.DELTAS_MODEL,
            self._deltas,
            inputs=message,
            outputs=message,
            config=ModelConfig(batching=False, decoupled=True),
        )
        self._triton.run()
        self._triton.connect()

    def is_alive(self) -> bool:
        """Whether Triton and the threads behind its models live."""
        return bool(self._triton.is_alive())

    def stop(self) -> None:
        """Stop Triton; gives up after some seconds, because PyTriton's own stop sometimes hangs."""
        stopping = threading.Thread(target=self._triton.stop, name="triton-stop", daemon=True)
        stopping.start()
        stopping.join(_STOP_SECONDS)
        if stopping.is_alive():
            logger.warning("Triton did not stop within %g seconds.", _STOP_SECONDS)

    async def _control(self, requests: list[Any]) -> list[Tensors]:
        try:
            message = wire.from_tensor(requests[0].data[wire.MESSAGE_TENSOR], Control)
        except wire.MessageError:
            logger.warning("A control call held no control message.", exc_info=True)
            return [_reply(ControlReply(session_known=False))]
        try:
            return [_reply(await self._in_front(self._take(message)))]
        except Exception:
            logger.exception("A control call failed.")
            return [_reply(ControlReply(session_known=False))]

    async def _take(self, message: Control) -> ControlReply:
        return self._front.control(message)

    async def _deltas(self, requests: list[Any]) -> AsyncIterator[list[Tensors]]:
        session_id = None
        try:
            message = wire.from_tensor(requests[0].data[wire.MESSAGE_TENSOR], OpenSession)
            session = await self._in_front(self._open(message))
            if isinstance(session, RequestError):
                yield [_reply(DeltaBatch(refusal=session))]
                return
            session_id = message.session_id
            while (batch := await self._in_front(session.next_batch())) is not None:
                yield [_reply(batch)]
        except wire.MessageError:
            logger.warning("A deltas call held no opening message.", exc_info=True)
            refusal = RequestError(ErrorCode.INVALID_REQUEST, "The stream must be opened with an OpenSession message.")
            yield [_reply(DeltaBatch(refusal=refusal))]
        except Exception:
            logger.exception("The deltas stream of session %s failed.", session_id)

    async def _open(self, message: OpenSession) -> Any:
        return self._front.open_session(message)

    async def _in_front(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the front's loop, from PyTriton's."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


def _reply(message: Any) -> Tensors:
    return {wire.MESSAGE_TENSOR: wire.to_tensor(message)}


def _put_python_library_first() -> None:
    """Let Triton's Python stub load this interpreter's libpython.

    Where the interpreter is not the system's (pyenv, conda, uv) the stub would find another of the same name, and the
    model dies with "'_thread.RLock' object has no attribute '_recursion_count'".
    """
    library_directory = sysconfig.get_config_var("LIBDIR")
    present = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, [library_directory, present]))
