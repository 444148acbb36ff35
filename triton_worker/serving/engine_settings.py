"""What each rank of the engine is started with: the same on every machine, from the same flags and checkpoint."""

from __future__ import annotations

from dataclasses import replace

from triton_worker.checkpoint import Checkpoint
from triton_worker.engine.rank import EngineSettings
from triton_worker.models.registry import prompts_of
from triton_worker.parallel import Layout
from triton_worker.processing.pictures import PictureBoundsError
from triton_worker.processing.prompt_format import PromptFormat
from triton_worker.serving.settings import UnusableSettings, WorkerSettings


def engine_settings(
    settings: WorkerSettings, prompts: PromptFormat, image_token_id: int, device: str
) -> EngineSettings:
    """``prompts``: see :func:`prompt_format`."""
    return EngineSettings(
        checkpoint=settings.nemo_checkpoint,
        tokenizer=settings.tokenizer,
        image_token_id=image_token_id,
        device=device,
        dtype=settings.dtype,
        limits=replace(settings.limits, max_picture_tokens=prompts.pictures.most_tokens),
        layout=Layout(settings.tensor_parallel_size, settings.pipeline_parallel_size),
    )


def prompt_format(settings: WorkerSettings, checkpoint: Checkpoint) -> PromptFormat:
    """What the checkpoint's family says of its prompts, with the flags' bounds on pictures.

    Raises CheckpointError, UnknownModelFamily and UnusableSettings.
    """
    try:
        return prompts_of(checkpoint.family).prompt_format(checkpoint, settings.min_pixels, settings.max_pixels)
    except PictureBoundsError as error:
        raise UnusableSettings(str(error)) from None
