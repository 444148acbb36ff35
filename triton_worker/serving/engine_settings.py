"""What each rank of the engine is started with: the same on every machine, from the same flags and checkpoint."""

from __future__ import annotations

from dataclasses import replace

from triton_worker.checkpoint import Checkpoint
from triton_worker.engine.rank import EngineSettings
from triton_worker.models.registry import picture_unit
from triton_worker.parallel import Layout
from triton_worker.processing.pictures import ResizeBounds
from triton_worker.serving.settings import UnusableSettings, WorkerSettings


def engine_settings(
    settings: WorkerSettings, checkpoint: Checkpoint, image_token_id: int, device: str
) -> EngineSettings:
    """Raises UnusableSettings and UnknownModelFamily."""
    unit = picture_unit(checkpoint.family)
    picture_tokens = max(1, resize_bounds(settings, checkpoint).max_pixels // unit**2)
    return EngineSettings(
        checkpoint=settings.nemo_checkpoint,
        tokenizer=settings.tokenizer,
        image_token_id=image_token_id,
        device=device,
        dtype=settings.dtype,
        limits=replace(settings.limits, max_picture_tokens=picture_tokens),
        layout=Layout(settings.tensor_parallel_size, settings.pipeline_parallel_size),
    )


def resize_bounds(settings: WorkerSettings, checkpoint: Checkpoint) -> ResizeBounds:
    """The flags', or else the checkpoint's, or else the defaults of Qwen2-VL's processor. NeMo 2.0 stores none.

    Raises UnusableSettings.
    """
    stored = checkpoint.image_processor or {}
    default = ResizeBounds()
    try:
        return ResizeBounds(
            min_pixels=int(settings.min_pixels or stored.get("min_pixels") or default.min_pixels),
            max_pixels=int(settings.max_pixels or stored.get("max_pixels") or default.max_pixels),
        )
    except (TypeError, ValueError):
        message = "--min_pixels must not be above --max_pixels (or the checkpoint's own bounds)."
        raise UnusableSettings(message) from None
