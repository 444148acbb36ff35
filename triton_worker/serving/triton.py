"""Triton, started and bound through PyTriton: the only module that knows it.

What PyTriton 0.7 does under load and faults was measured; the shape of this module follows from it:

- One decoupled response costs about 2 ms of CPU, so one stream a gateway carries the deltas of all its requests.
- Triton keeps every response of a stream until the stream ends, so a long one gives way to the next.
- A callable that raises sends a traceback to the caller: ours answer faults as data and never raise.
- A model that is not decoupled answers one batch at a time: the reference model gets a stub of our own that does not.
- A Python stub that stands still for a second while Triton waits for it (a machine that was paused, say) makes Triton
  take each later answer for that of the call before, from memory that is free again, until it crashes.
- Each bound model has an event loop of its own; ours hop to the front's loop, where all state lives.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sysconfig
import threading
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tritonclient.grpc as grpc
from msgspec import structs
from numpy.typing import NDArray
from pytriton.model_config import ModelConfig, Tensor
from pytriton.models.model import Model
from pytriton.triton import Triton, TritonConfig

from protocol import wire
from protocol.messages import Control, ControlReply, DeltaBatch, ErrorCode, OpenSession, RequestError
from triton_worker.serving.front import Front
from triton_worker.serving.reference_model import PARAMETERS, CallFailed, ReferenceModel
from triton_worker.serving.settings import TritonAddresses

logger = logging.getLogger(__name__)

_STOP_SECONDS = 8.0
_EXIT_TIMEOUT_SECONDS = 3
"""How long Triton waits for calls in flight when it stops; the front has ended them before."""

_STUB = Path(__file__).with_name("concurrent_stub.py")
"""Runs in Triton's process, so it is read and not imported."""
_ERROR_TENSOR = "error"  # as in the stub
_TRITON_ERRORS = {
    ErrorCode.INVALID_REQUEST: "INVALID_ARG",
    ErrorCode.INVALID_PICTURE: "INVALID_ARG",
    ErrorCode.QUEUE_FULL: "UNAVAILABLE",
    ErrorCode.UNAVAILABLE: "UNAVAILABLE",
    ErrorCode.DEADLINE_EXCEEDED: "UNAVAILABLE",
}
"""What else goes wrong is INTERNAL."""

_STREAM_BYTES = 4 * 2**20
"""What Triton may keep of one stream, about: a minute's responses of a busy worker."""
_RESPONSE_BYTES = 1200
"""What it keeps of a response beside the message, measured with Triton 2.51."""

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
        self._grpc_target = addresses.grpc_target
        self._connected = False
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

    def launch(self) -> None:
        """Start Triton's process. It ends with the thread that calls this, which should be the main one."""
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
        self._triton._run_server()  # its run() would wait as connect() does, and nothing could interrupt it

    def connect(self) -> None:
        """Wait for Triton and load the models; returns when calls are answered."""
        self._triton.connect()
        self._connected = True

    def add_reference_model(self, model: ReferenceModel, name: str, version: int, max_batch_size: int) -> None:
        """Serve the reference's tensor contract too. To be called before :meth:`connect`."""

        async def infer(requests: list[Any]) -> list[Tensors]:
            return await asyncio.gather(*(self._reference_call(model, request.data) for request in requests))

        parameters = [
            Tensor(name=tensor, dtype=parameter.dtype, shape=(-1,), optional=True)
            for tensor, parameter in PARAMETERS.items()
        ]
        # What Triton.bind does, with a class of ours.
        bound = _ConcurrentModel(
            model_name=name,
            model_version=version,
            inference_fn=infer,
            inputs=[
                Tensor(name="prompts", dtype=bytes, shape=(-1,)),
                Tensor(name="images", dtype=bytes, shape=(-1,), optional=True),
                *parameters,
            ],
            outputs=[Tensor(name="sentences", dtype=bytes, shape=(-1,))],
            # No batcher: the engine batches, and a call that waited for others here would wait for the longest.
            config=ModelConfig(max_batch_size=max_batch_size, batcher=None),
            workspace=self._triton._workspace,
            triton_context=self._triton._triton_context,
            strict=False,
        )
        bound.on_model_event(self._triton._on_model_event)
        self._triton._model_manager.add_model(bound)

    def is_alive(self) -> bool:
        """Whether Triton and the threads behind its models live."""
        return bool(self._triton.is_alive())

    def probe(self, timeout_seconds: float) -> bool:
        """Whether a call still comes through Triton to the front, and its reply back: Triton's health does not tell."""
        # Not by way of a proxy that the environment may name.
        direct = [("grpc.enable_http_proxy", 0)]
        client = grpc.InferenceServerClient(self._grpc_target, channel_args=direct)
        probe = Control(f"probe-{secrets.token_hex(4)}")
        try:
            message = wire.to_tensor(probe)
            tensor = grpc.InferInput(wire.MESSAGE_TENSOR, list(message.shape), "UINT8")
            tensor.set_data_from_numpy(message)
            result = client.infer(wire.CONTROL_MODEL, [tensor], client_timeout=timeout_seconds)
            reply = wire.from_tensor(result.as_numpy(wire.MESSAGE_TENSOR), ControlReply)
        except Exception as error:
            logger.warning("Triton did not answer a probe: %s", error)
            return False
        finally:
            client.close()
        if reply.session_id != probe.session_id:
            logger.warning("Triton answered a probe with the reply to another call.")
            return False
        return True

    def kill(self) -> None:
        """End Triton's process at once, whatever it does, and free its shared memory; its stubs notice and end too."""
        server = self._triton._triton_server
        if server is not None and server.is_alive():
            server._tritonserver_running_cmd.process.kill()
        prefix = self._triton._python_backend_config["shm-region-prefix-name"]
        for segment in Path("/dev/shm").glob(f"{prefix}*"):
            segment.unlink(missing_ok=True)

    def stop(self) -> None:
        """Stop Triton; gives up after some seconds, because PyTriton's own stop sometimes hangs.

        Before it has connected, that stop would wait until it has: its process is left for the run directory to kill.
        """
        if not self._connected:
            return
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
            return [_reply(ControlReply("", session_known=False))]
        try:
            return [_reply(await self._in_front(self._take(message)))]
        except Exception:
            logger.exception("A control call failed.")
            return [_reply(ControlReply(message.session_id, session_known=False))]

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
            kept_bytes = 0
            while (batch := await self._in_front(session.next_batch())) is not None:
                last = kept_bytes > _STREAM_BYTES
                reply = _reply(structs.replace(batch, resume=True) if last else batch)
                yield [reply]
                if last:
                    return
                kept_bytes += _RESPONSE_BYTES + reply[wire.MESSAGE_TENSOR].nbytes
        except wire.MessageError:
            logger.warning("A deltas call held no opening message.", exc_info=True)
            refusal = RequestError(ErrorCode.INVALID_REQUEST, "The stream must be opened with an OpenSession message.")
            yield [_reply(DeltaBatch(refusal=refusal))]
        except Exception:
            logger.exception("The deltas stream of session %s failed.", session_id)

    async def _reference_call(self, model: ReferenceModel, tensors: Tensors) -> Tensors:
        try:
            submits, at_once = model.read(tensors)
            texts = await self._in_front(model.answer(submits, at_once))
        except CallFailed as failed:
            return _failure(failed.error)
        except Exception:
            logger.exception("A call of the reference model failed.")
            return _failure(RequestError(ErrorCode.INTERNAL, "The call failed; the worker's log says why."))
        return {"sentences": np.array([[text.encode()] for text in texts], dtype=np.object_)}

    async def _open(self, message: OpenSession) -> Any:
        return self._front.open_session(message)

    async def _in_front(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the front's loop, from PyTriton's."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))


class _ConcurrentModel(Model):  # type: ignore[misc]
    """A model that is not decoupled, so that HTTP reaches it, and yet answers any number of calls at once."""

    def get_proxy_model_files(self) -> dict[str, bytes]:
        files: dict[str, bytes] = super().get_proxy_model_files()
        directory = f"file:{self.model_version}"
        files[f"{directory}/pytriton_model.py"] = files[f"{directory}/model.py"]
        files[f"{directory}/model.py"] = _STUB.read_bytes()
        return files


def _reply(message: Any) -> Tensors:
    return {wire.MESSAGE_TENSOR: wire.to_tensor(message)}


def _failure(error: RequestError) -> Tensors:
    code = _TRITON_ERRORS.get(error.code, "INTERNAL")
    return {_ERROR_TENSOR: np.array([code.encode(), error.message.encode()], dtype=np.object_)}


def _put_python_library_first() -> None:
    """Let Triton's Python stub load this interpreter's libpython.

    Where the interpreter is not the system's (pyenv, conda, uv) the stub would find another of the same name, and the
    model dies with "'_thread.RLock' object has no attribute '_recursion_count'".
    """
    library_directory = sysconfig.get_config_var("LIBDIR")
    present = os.environ.get("LD_LIBRARY_PATH")
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, [library_directory, present]))
