"""Train the demo model on pictures that are drawn as it learns.

    python -m examples.demo_model.train --output build/demo --steps 5000

writes a Hugging Face directory (`model.safetensors`, `config.json`, the tokenizer's files) and, below it, the same as a
NeMo 2.0 checkpoint in `nemo/`. An interrupted run goes on from `training.pt` when the command is given again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import multiprocessing
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import Qwen2_5_VLForConditionalGeneration

from examples.demo_model.batches import BatchMaker
from examples.demo_model.model import Batch, demo_config, training_loss
from examples.demo_model.starting_weights import starting_weights
from examples.demo_model.tokenizer import corpus, save_tokenizer, train_tokenizer
from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.qwen2_5_vl.conversion import write_nemo

STATE_FILE = "training.pt"


class BatchStream(IterableDataset[Batch]):
    """Endless batches; every worker process draws its own, easy ones for as long as `step` is below `easy_steps`."""

    def __init__(self, tokenizer: str, seed: int, pictures: int, easy_steps: int, step: Synchronized[int]) -> None:
        self.tokenizer, self.seed, self.pictures = tokenizer, seed, pictures
        self.easy_steps, self.step = easy_steps, step

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        torch.set_num_threads(1)
        rng = Random(f"{self.seed}/{worker.id if worker else 0}/{self.step.value}")
        maker = BatchMaker(Tokenizer.from_file(self.tokenizer), rng, self.pictures)
        while True:
            # A share of easy batches remains later on, and of full ones from the start: neither comes as a surprise.
            easy_share = 0.85 if self.step.value < self.easy_steps else 0.03
            yield maker.make(easy=rng.random() < easy_share)


class Trainer:
    """The model, its optimizer, a running average of its weights, and how far training has come."""

    def __init__(self, options: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(options.seed)
        token_ids = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
        with torch.device(self.device):
            self.model = Qwen2_5_VLForConditionalGeneration(demo_config(token_ids)).train()
        decayed = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        rest = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98), fused=True)
        # cuDNN's attention builds a plan for every new shape, and most batches have one. The one long run with it also
        # ended in gradients that were not finite.
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.average = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.step = 0
        self.started = time.monotonic()
        self.waited = 0.0
        self.skipped = torch.zeros((), device=self.device)

    def rate(self) -> float:
        """Learning rate: a linear start, then half a cosine down to a fiftieth at the last step or second."""
        options = self.options
        if self.step < options.warmup:
            return float(options.rate * (self.step + 1) / options.warmup)
        by_step = (self.step - options.warmup) / max(1, options.steps - options.warmup)
        progress = min(1.0, max(by_step, (time.monotonic() - self.started) / options.seconds))
        return float(options.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))))

    def update(self, batches: Iterator[Batch]) -> torch.Tensor:
        """One optimizer step over `accumulate` batches; their mean loss and accuracy [2], still on the device."""
        total = torch.zeros(2, device=self.device)
        for _ in range(self.options.accumulate):
            asked = time.monotonic()
            batch = next(batches)
            self.waited += time.monotonic() - asked
            batch = batch.to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss, accuracy = training_loss(self.model, batch)
            (loss / self.options.accumulate).backward()
            total += torch.stack([loss.detach(), accuracy]) / self.options.accumulate
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        # The fused optimizer leaves the weights alone where this is 1, without waiting for the device.
        unusable = (~torch.isfinite(norm)).float()
        self.optimizer.found_inf = unusable  # type: ignore[attr-defined]
        self.skipped += unusable
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._average(min(0.999, 1 - 10 / (self.step + 10)))
        return total

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        averages = list(self.average.values())
        values = [value.detach() for value in self.model.parameters()]
        torch._foreach_lerp_(averages, values, 1 - decay)

    def state(self) -> dict[str, Any]:
        """All that a later run needs to go on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
        }

    def start_from(self, checkpoint: Path) -> None:
        """Begin with the weights of a finished run."""
        weights = starting_weights(checkpoint)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
                self.average[name].copy_(parameter)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state saved earlier."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)


def save_model(trainer: Trainer, directory: Path) -> None:
    """The averaged weights in bfloat16 and the configuration, as Hugging Face keeps them."""
    weights = {name: value.to(torch.bfloat16).cpu().contiguous() for name, value in trainer.average.items()}
    weights.pop("lm_head.weight", None)
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})
    config = trainer.model.config
    config.architectures = ["Qwen2_5_VLForConditionalGeneration"]
    config.dtype = "bfloat16"
    config.save_pretrained(directory)


def train(options: argparse.Namespace) -> None:
    """Train until `steps` or `seconds` are over, saving as it goes."""
    output: Path = options.output
    output.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(corpus(options.seed, rounds=3000))
    save_tokenizer(tokenizer, output)
    state = _interrupted_run(options.resume)
    step: Synchronized[int] = multiprocessing.Value("i", state["step"] if state else 0)
    stream = BatchStream(str(output / "tokenizer.json"), options.seed, options.pictures, options.easy_steps, step)
    batches = iter(_loader(stream, options.workers))
    trainer = Trainer(options, tokenizer)
    if state:
        trainer.restore(state)
    elif options.start_from:
        trainer.start_from(options.start_from)
    saved = time.monotonic()
    recent: list[torch.Tensor] = []
    while trainer.step < options.steps and time.monotonic() - trainer.started < options.seconds:
        recent.append(trainer.update(batches))
        step.value = trainer.step
        if trainer.step % options.report_every == 0:
            _report(trainer, recent, time.monotonic() - trainer.started)
            recent.clear()
        if time.monotonic() - saved > options.save_every:
            saved = time.monotonic()
            _save(trainer, output)
    _save(trainer, output)
    shutil.rmtree(output / "nemo", ignore_errors=True)
    write_nemo(open_checkpoint(output), output / "nemo")


def _interrupted_run(directory: Path) -> dict[str, Any] | None:
    path = directory / STATE_FILE
    state: dict[str, Any] | None = torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None
    return state


def _report(trainer: Trainer, recent: list[torch.Tensor], seconds: float) -> None:
    loss, accuracy = torch.stack(recent).nanmean(0).tolist()
    skipped = float(trainer.skipped)
    values = {"loss": loss, "accuracy": accuracy, "rate": trainer.rate(), "seconds": seconds}
    values |= {"waited": trainer.waited, "skipped": skipped}
    rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
    print(json.dumps({"step": trainer.step, **rounded}), flush=True)
    if skipped > 0.1 * trainer.step + 5:
        raise RuntimeError("Training diverged: the gradient of more than a tenth of the steps was not finite.")


def _save(trainer: Trainer, output: Path) -> None:
    save_model(trainer, output)
    # Written beside and moved into place: a run that is stopped here leaves the last whole state.
    torch.save(trainer.state(), output / "training.part")
    (output / "training.part").rename(output / STATE_FILE)


def _loader(stream: BatchStream, workers: int) -> DataLoader[Batch]:
    """Batches drawn ahead by `workers` processes; they start before the GPU is touched, so that they may be forked."""
    ahead = 4 if workers else None
    return DataLoader(stream, batch_size=None, num_workers=workers, prefetch_factor=ahead)


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model on pictures that are drawn as it learns.")
    parser.add_argument("--output", type=Path, required=True, help="directory for the weights and the tokenizer")
    parser.add_argument("--resume", type=Path, help="directory of an interrupted run (default: the output)")
    parser.add_argument("--start-from", type=Path, help="checkpoint of a finished run to begin with")
    parser.add_argument("--seed", type=int, default=2025)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop and save after this time")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps until the highest learning rate")
    parser.add_argument("--easy-steps", type=int, default=600, help="steps with mostly one or two shapes")
    parser.add_argument("--pictures", type=int, default=128, help="pictures in a batch")
    parser.add_argument("--accumulate", type=int, default=1, help="batches in a step")
    parser.add_argument("--workers", type=int, default=14, help="processes which draw")
    parser.add_argument("--report-every", type=int, default=50)
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds between saved states")
    options = parser.parse_args(arguments)
    options.resume = options.resume or options.output
    return options


if __name__ == "__main__":
    train(parse_options())
