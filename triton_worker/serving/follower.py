"""A rank of the engine other than the first, where torchrun started it: it has no front and no Triton."""

from __future__ import annotations

import sys

from triton_worker.checkpoint import CheckpointError, open_checkpoint
from triton_worker.engine.messages import EngineFailed, FromEngine
from triton_worker.engine.rank import RankPlace, run_rank
from triton_worker.models.registry import UnknownModelFamily
from triton_worker.parallel.torchrun import Torchrun
from triton_worker.processing.tokenizer import Tokenizer
from triton_worker.serving.devices import DeviceError, check_rank_count, resolve_device
from triton_worker.serving.engine_settings import engine_settings, prompt_format
from triton_worker.serving.settings import UnusableSettings, WorkerSettings


def run_follower(settings: WorkerSettings, torchrun: Torchrun) -> int:
    """Serve until rank 0 ends; the exit code. The process should end with it at once: threads may linger."""
    try:
        check_rank_count(settings)
        checkpoint = open_checkpoint(settings.nemo_checkpoint, settings.tokenizer)
        prompts = prompt_format(settings, checkpoint)
        image_token_id = Tokenizer(checkpoint.tokenizer_directory, prompts.tokenizer).image_token_id
        engine = engine_settings(settings, prompts, image_token_id, resolve_device(settings))
    except (CheckpointError, DeviceError, UnknownModelFamily, UnusableSettings) as error:
        _tell(EngineFailed(str(error)))
        return 1
    return 0 if run_rank(engine, RankPlace.under(torchrun), _tell, inbox=None) else 1


def _tell(message: FromEngine) -> None:
    if isinstance(message, EngineFailed):
        print(f"error: {message.message}", file=sys.stderr)
