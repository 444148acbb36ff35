"""Where the ranks of the engine run, and whether there is room for all of them."""

from __future__ import annotations

import torch

from triton_worker.parallel.torchrun import Torchrun
from triton_worker.serving.settings import WorkerSettings


class DeviceError(Exception):
    """There is not what the flags ask for; the message is for the person who gave them."""


def resolve_device(settings: WorkerSettings) -> str:
    """The device of the engine's ranks; ``auto`` is ``cuda`` where there is a GPU.

    Raises:
        DeviceError: there are fewer GPUs than ranks on this machine.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.device == "cpu" or (settings.device == "auto" and not gpus):
        return "cpu"
    if not gpus:
        raise DeviceError("--device is cuda, but PyTorch finds no GPU here; use --device cpu.")
    torchrun = Torchrun.from_environment()
    needed = _rank_count(settings) if torchrun is None else torchrun.local_count
    if gpus < needed:
        raise DeviceError(f"{_told_sizes(settings)} needs {needed} GPUs here; PyTorch finds {gpus}.")
    return "cuda"


def _rank_count(settings: WorkerSettings) -> int:
    return settings.tensor_parallel_size * settings.pipeline_parallel_size


def _told_sizes(settings: WorkerSettings) -> str:
    tensor, pipeline = settings.tensor_parallel_size, settings.pipeline_parallel_size
    return f"--tensor_parallel_size {tensor} --pipeline_parallel_size {pipeline}"


def check_rank_count(settings: WorkerSettings) -> None:
    """Raises DeviceError unless torchrun, where it is used, started a process for each rank."""
    torchrun = Torchrun.from_environment()
    if torchrun is not None and torchrun.count != _rank_count(settings):
        raise DeviceError(
            f"{_told_sizes(settings)} needs {_rank_count(settings)} processes; torchrun started {torchrun.count}."
        )
