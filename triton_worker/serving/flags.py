"""The worker's command-line flags. Each can be given as an environment variable too: MULTIMODAL_ and the long name."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from protocol import wire
from triton_worker.engine.limits import EngineLimits
from triton_worker.processing.pictures import REFERENCE_BOUNDS, ResizeBounds
from triton_worker.serving.settings import TritonAddresses, WorkerSettings

ENVIRONMENT_PREFIX = "MULTIMODAL_"


Flags = argparse.ArgumentParser | argparse._ArgumentGroup


def add_flag(flags: Flags, *names: str, default: Any = None, required: bool = False, help: str, **options: Any) -> None:
    """Like ``add_argument``, with an environment variable behind it; the help text tells both it and the default."""
    long_name = next(name for name in names if name.startswith("--")).removeprefix("--")
    variable = ENVIRONMENT_PREFIX + long_name.upper()
    told = os.environ.get(variable) or None
    shown = "" if default is None else f" Default: {default}."
    if options.get("action") == "store_true":
        default = told is not None and told.lower() in ("1", "true", "yes")
    elif told is not None:
        default, required = told, False  # argparse converts and checks a default that is a string
    if "action" not in options:
        options["metavar"] = long_name.rpartition("_")[2].upper()  # the whole name would not fit the help's lines
    flags.add_argument(
        *names, default=default, required=required, help=f"{help}{shown} [{variable}]".replace("%", "%%"), **options
    )


def add_worker_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a worker, in groups."""
    _add_export_deploy_flags(parser.add_argument_group("model", "As in NeMo Export-Deploy."))
    _add_triton_flags(parser.add_argument_group("Triton"))
    _add_engine_flags(parser.add_argument_group("engine"))
    _add_picture_flags(parser.add_argument_group("pictures"))
    _add_tracing_flags(parser.add_argument_group("tracing"))


def _add_export_deploy_flags(flags: Flags) -> None:
    """Names, short forms and defaults are those of NeMo Export-Deploy."""
    add_flag(flags, "-nc", "--nemo_checkpoint", required=True, help="Checkpoint directory (NeMo 2.0 or Hugging Face).")
    add_flag(
        flags, "-tmn", "--triton_model_name", type=model_name, required=True, help="Name under which it is served."
    )
    add_flag(flags, "-tmv", "--triton_model_version", type=positive, default=1, help="The model's version in Triton.")
    add_flag(flags, "-trp", "--triton_port", type=port, default=8000, help="Triton's HTTP port.")
    add_flag(flags, "-tha", "--triton_http_address", default="0.0.0.0", help="Address of Triton's HTTP port.")
    add_flag(
        flags,
        "-pd",
        "--params_dtype",
        type=one_of("float16", "bfloat16", "float32"),
        default="bfloat16",
        help="Data type of the parameters: float16, bfloat16 or float32.",
    )
    add_flag(
        flags,
        "-tps",
        "--tensor_parallel_size",
        "--tensor_parallelism_size",
        type=positive,
        default=1,
        help="Ranks, a GPU each, that share every layer.",
    )
    add_flag(
        flags,
        "-pps",
        "--pipeline_parallel_size",
        "--pipeline_parallelism_size",
        type=positive,
        default=1,
        help="Stages, of as many GPUs each, that the layers are split into.",
    )
    add_flag(
        flags,
        "-mbs",
        "--max_batch_size",
        type=positive,
        default=4,
        help="Prompts in one call over Triton at most. What is computed at once is --max_num_seqs.",
    )
    add_flag(
        flags,
        "-ibts",
        "--inference_batch_times_seqlen_threshold",
        type=positive,
        default=1000,
        help="Tokens of prompts, batch times length, that one step prefills at most; longer ones take several steps.",
    )
    add_flag(flags, "-dm", "--debug_mode", action="store_true", help="Log more.")


def _add_triton_flags(flags: Flags) -> None:
    add_flag(
        flags, "--triton_grpc_port", type=port, default=8001, help="Triton's gRPC port, which the gateway speaks to."
    )
    add_flag(
        flags,
        "--triton_grpc_address",
        default="127.0.0.1",
        help="Address of Triton's gRPC port: reachable from here alone.",
    )
    add_flag(flags, "--triton_metrics_port", type=port, default=8002, help="Port of Triton's metrics.")


def _add_tracing_flags(flags: Flags) -> None:
    add_flag(
        flags, "--otlp_endpoint", type=collector, help="Send traces to this OTLP/gRPC collector, as http://host:4317."
    )


def _add_engine_flags(flags: Flags) -> None:
    add_flag(flags, "--tokenizer", help="Directory of the tokenizer, where the checkpoint holds none.")
    add_flag(flags, "--device", type=one_of("auto", "cpu", "cuda"), default="auto", help="auto, cpu or cuda.")
    add_flag(flags, "--max_num_seqs", type=positive, default=64, help="Requests computed at once.")
    add_flag(
        flags, "--max_queued_requests", type=natural, default=256, help="Requests that may wait; more are refused."
    )
    add_flag(
        flags, "--max_model_len", type=positive, help="Tokens of prompt and answer together; else the checkpoint's."
    )
    add_flag(
        flags,
        "--gpu_memory_fraction",
        type=fraction,
        default=0.9,
        help="Part of the free GPU memory, after the weights, that is used; what a step does not need is KV cache.",
    )
    add_flag(
        flags,
        "--kv_cache_bytes",
        type=byte_count,
        help="Bytes of KV cache of each rank, at most. Default: 1 GiB on the CPU, on a GPU what is left of that part.",
    )
    add_flag(
        flags,
        "--prefix_cache",
        type=one_of("on", "off"),
        default="on",
        help="Whether prompts that begin alike share what was computed for their beginning: on or off.",
    )
    add_flag(
        flags,
        "--cuda_graphs",
        type=one_of("on", "off"),
        default="on",
        help="Whether decode steps and small ones with prompts are recorded at the start and replayed: on or off.",
    )
    add_flag(
        flags,
        "--vision_cache_bytes",
        type=byte_count,
        help="Bytes of picture embeddings kept for when one comes again. Default: 1 GiB on a GPU, 256 MiB on the CPU.",
    )


def _add_picture_flags(flags: Flags) -> None:
    bounds = ResizeBounds()
    add_flag(
        flags,
        "--min_pixels",
        type=positive,
        help=f"Pictures with fewer pixels are enlarged. Default: what the checkpoint says, or {bounds.min_pixels}.",
    )
    add_flag(
        flags,
        "--max_pixels",
        type=positive,
        help=f"Pictures with more pixels are made smaller. Default: what the checkpoint says, or {bounds.max_pixels}.",
    )
    add_flag(
        flags,
        "--reference_image_limits",
        action="store_true",
        help="The bounds of NeMo Export-Deploy in place of both, 64 tokens a picture, to compare like with like.",
    )


def settings_from(arguments: argparse.Namespace) -> WorkerSettings:
    """The settings that the parsed flags mean."""
    return WorkerSettings(
        nemo_checkpoint=arguments.nemo_checkpoint,
        model_name=arguments.triton_model_name,
        model_version=arguments.triton_model_version,
        max_batch_size=arguments.max_batch_size,
        tokenizer=arguments.tokenizer,
        dtype=arguments.params_dtype,
        device=arguments.device,
        triton=TritonAddresses(
            http_address=arguments.triton_http_address,
            http_port=arguments.triton_port,
            grpc_address=arguments.triton_grpc_address,
            grpc_port=arguments.triton_grpc_port,
            metrics_port=arguments.triton_metrics_port,
        ),
        tensor_parallel_size=arguments.tensor_parallel_size,
        pipeline_parallel_size=arguments.pipeline_parallel_size,
        limits=EngineLimits(
            max_sequences=arguments.max_num_seqs,
            max_prefill_tokens=arguments.inference_batch_times_seqlen_threshold,
            context_length=arguments.max_model_len,
            prefix_cache=arguments.prefix_cache == "on",
            cuda_graphs=arguments.cuda_graphs == "on",
            picture_cache_bytes=arguments.vision_cache_bytes,
            gpu_memory_fraction=arguments.gpu_memory_fraction,
            kv_cache_bytes=arguments.kv_cache_bytes,
        ),
        max_requests=arguments.max_num_seqs + arguments.max_queued_requests,
        min_pixels=REFERENCE_BOUNDS.min_pixels if arguments.reference_image_limits else arguments.min_pixels,
        max_pixels=REFERENCE_BOUNDS.max_pixels if arguments.reference_image_limits else arguments.max_pixels,
        debug=arguments.debug_mode,
        otlp_endpoint=arguments.otlp_endpoint,
    )


def parse_worker_flags(argv: Sequence[str] | None = None) -> WorkerSettings:
    """Settings from the command line and the environment; exits with 2 and a sentence when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="multimodal-worker", description="Serves a vision-language checkpoint over Triton.", allow_abbrev=False
    )
    add_worker_flags(parser)
    return settings_from(parser.parse_args(argv))


def _number(kind: Callable[[str], Any], low: float, high: float, expected: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return convert


def one_of(*choices: str) -> Callable[[str], str]:
    """Converter that takes one of ``choices`` (argparse's own ``choices`` does not check defaults)."""

    def convert(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return convert


def model_name(text: str) -> str:
    """Converter that takes what Triton takes as a model's name, but not those of the gateway's models."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} has characters other than letters, digits, dots, dashes and _")
    if text.lower() in (wire.CONTROL_MODEL, wire.DELTAS_MODEL):
        raise argparse.ArgumentTypeError(f"{text!r} is the name of a model that the gateway needs")
    return text


def collector(text: str) -> str:
    """Converter that takes the address of an OTLP/gRPC collector."""
    if not re.fullmatch(r"https?://[^/\s]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form http://host:port or https://host:port")
    return text


port = _number(int, 1, 65535, "a port (1 to 65535)")
positive = _number(int, 1, 2**31 - 1, "a whole number above 0")
natural = _number(int, 0, 2**31 - 1, "a whole number from 0")
byte_count = _number(int, 0, 2**50, "a whole number of bytes")
fraction = _number(float, 0.01, 1.0, "a number from 0.01 to 1")
