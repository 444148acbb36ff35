"""One model over several ranks beside one rank: the same logits, and the time of a decode step.

    python -m benchmarks.parallel                  # two GPUs: shapes of 3B and 7B, random weights, bfloat16
    python -m benchmarks.parallel --shapes tiny --device cpu --context 64 --steps 5

For each shape the first 32 greedy tokens of a single rank are forced on TP 2 and PP 2, whose logits must be within
2 % (root mean square, relative to the logits' own) in bfloat16 and 0.01 % in float32. Exits with 1 where they are not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.random_weights import RandomWeights
from benchmarks.shapes import SHAPES
from protocol.messages import SamplingParameters
from triton_worker.engine.engine import Engine
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import Generate
from triton_worker.models.decoder.rope import Rotary, apply_rotary
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.qwen2_5_vl import build_model, fill_weights
from triton_worker.models.qwen2_5_vl.config import Qwen25VLConfig
from triton_worker.parallel import Layout, Ranks, connect

LAYOUTS = {"TP 1": Layout(1, 1), "TP 2": Layout(2, 1), "PP 2": Layout(1, 2)}
BATCHES = (1, 64)
FORCED_TOKENS = 32
TOLERANCE = {"bfloat16": 0.02, "float32": 0.0001}


class CausalAttention:
    """Of one sequence, all of it at once."""

    def __init__(self, kv_heads: int) -> None:
        self._kv_heads = kv_heads

    def __call__(self, layer: int, heads: Tensor, rotary: Rotary) -> Tensor:
        turned = apply_rotary(heads[:, : -self._kv_heads], rotary)
        query, key, value = turned[:, : -self._kv_heads], turned[:, -self._kv_heads :], heads[:, -self._kv_heads :]
        q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)


def run_rank(rank: int, meeting_file: str, layout: Layout, options: argparse.Namespace, forced: list[int]) -> None:
    """One rank of one layout; rank 0 leaves the tokens and the times, the first of the last stage the logits."""
    device = torch.device("cpu") if options.device == "cpu" else torch.device("cuda", rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    ranks = Ranks() if layout.count == 1 else connect(layout, rank, meeting_file, device)
    config: Qwen25VLConfig = SHAPES[options.shape]
    model = build_model(config, ranks, dtype=getattr(torch, options.dtype), device=device)
    fill_weights(RandomWeights(model, model.dtype, device), "huggingface", model)
    ranks.wait_until_loaded()
    limits = EngineLimits(
        max_sequences=max(BATCHES),
        context_length=options.context + 512,
        max_prefill_tokens=8192,
        prefix_cache=False,  # all prompts are the same, and shall not share their KV blocks
    )
    engine = Engine(model, config.text.vocab_size - 1, options.context + 512, limits)
    engine.warm_up()
    prompt = list(range(1, 65))
    tokens = forced or [token for [token] in generate(engine, [prompt], FORCED_TOKENS)]
    logits = teacher_forced(model, prompt, tokens)
    times = {batch: decode_seconds(engine, batch, options) for batch in BATCHES}
    if ranks.is_last_stage and ranks.tensor_rank == 0:
        torch.save(logits, f"{meeting_file}.logits")
    if rank == 0:
        torch.save({"tokens": tokens, "times": times}, f"{meeting_file}.result")
    ranks.leave_together()


def generate(engine: Engine, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The tokens of each of ``count`` steps after the prompts have been read, greedily; in order of the prompts."""
    for number, prompt in enumerate(prompts):
        greedy = SamplingParameters(temperature=0.0)
        engine.add(Generate(str(number), tuple(prompt), (), greedy, count, 0, frozenset()))
    steps = []
    while engine.has_work:
        steps.append([token.token_id for token in engine.step().tokens])
    return [tokens for tokens in steps if tokens]


@torch.inference_mode()
def teacher_forced(model: MultimodalModel, prompt: list[int], tokens: list[int]) -> Tensor | None:
    """Logits, float32 on the CPU, of the places where ``tokens`` were chosen."""
    token_ids = torch.tensor(prompt + tokens[:-1], device=model.device)
    positions = torch.arange(len(token_ids), device=model.device).expand(3, -1)
    hidden = model.forward(model.embed_tokens(token_ids), positions, CausalAttention(model.num_kv_heads))
    return model.logits(hidden[len(prompt) - 1 :]).float().cpu() if model.ranks.is_last_stage else None


def decode_seconds(engine: Engine, batch: int, options: argparse.Namespace) -> float:
    """Seconds of one decode step with ``batch`` sequences of the context asked for."""
    prompt = [1 + token % 500 for token in range(options.context)]
    for number in range(batch):
        engine.add(Generate(str(number), tuple(prompt), (), SamplingParameters(temperature=0.0), 512, 0, frozenset()))
    while len(engine.step().tokens) < batch:
        pass
    for _ in range(10):  # the first decode steps are slower
        engine.step()
    began = time.perf_counter()
    for _ in range(options.steps):
        engine.step()
    seconds: float = (time.perf_counter() - began) / options.steps
    for number in range(batch):
        engine.abort(str(number))
    return seconds


def run_layout(layout: Layout, options: argparse.Namespace, forced: list[int]) -> tuple[dict[str, Any], Tensor]:
    """What all ranks of a layout left."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        meeting = str(Path(directory) / "ranks")
        arguments = [(rank, meeting, layout, options, forced) for rank in range(layout.count)]
        processes = [context.Process(target=run_rank, args=each) for each in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit("error: a rank failed; the lines above say where.")
        return torch.load(f"{meeting}.result"), torch.load(f"{meeting}.logits")


def main() -> None:
    """Print a line for each shape and layout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["3b", "7b"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--context", type=int, default=1024, help="tokens before the measured decode steps")
    parser.add_argument("--steps", type=int, default=100, help="decode steps measured")
    options = parser.parse_args()
    options.dtype = "float32" if options.device == "cpu" else "bfloat16"
    print("| shape | layout | logits differ by | same greedy token | decode step, 1 request | 64 requests |")
    print("|---|---|---|---|---|---|")
    failed = False
    for shape in options.shapes:
        options.shape = shape
        expected, forced = torch.empty(0), list[int]()
        for name, layout in LAYOUTS.items():
            result, logits = run_layout(layout, options, forced)
            expected, forced = (logits, result["tokens"]) if not forced else (expected, forced)
            difference = float((logits - expected).square().mean().sqrt() / expected.square().mean().sqrt())
            same = int((logits.argmax(-1) == expected.argmax(-1)).sum())
            times = " | ".join(f"{result['times'][batch] * 1e3:.2f} ms" for batch in BATCHES)
            told = f"{difference:.4%} | {same} of {FORCED_TOKENS}"
            print(f"| {shape} | {name} | {told} | {times} |", flush=True)
            failed |= difference > TOLERANCE[options.dtype]
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
