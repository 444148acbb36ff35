"""NeMo's environment, which `make test-nemo-interop` makes, and the steps of tests/interop/nemo_side run in it."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from triton_worker.checkpoint import open_checkpoint

_SIDE = Path(__file__).parent / "nemo_side"
_STEP_SECONDS = 900  # half a minute on an idle machine


@dataclass(frozen=True)
class Loaded:
    """What NeMo made of a checkpoint.

    state: its model's parameters, by NeMo's names without the `module.` of the file; layers are apart.
    logits: [S, V] of the inputs. saved: the checkpoint that NeMo saved of it.
    """

    state: dict[str, Tensor]
    logits: Tensor
    saved: Path


def load(checkpoint: Path, inputs: dict[str, Tensor], out: Path) -> Loaded:
    """NeMo loads `checkpoint`, runs the model on `inputs`, and saves it again."""
    out.mkdir()
    save_file({name: value.contiguous() for name, value in inputs.items()}, out / "inputs.safetensors")
    _run("load", checkpoint, out / "inputs.safetensors", out)
    state = load_file(out / "tensors.safetensors")
    return Loaded(logits=state.pop("logits"), state=state, saved=out / "nemo")


def import_from_huggingface(source: Path, checkpoint: Path) -> Path:
    """NeMo's importer makes `checkpoint` of `source`."""
    _run("import", source, checkpoint)
    return checkpoint


def stored_state(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by the names of NeMo's model: without prefix, layers apart."""
    weights = open_checkpoint(checkpoint).weights
    state = {}
    for stored in weights.names:
        name, values = stored.removeprefix("module."), weights.read(stored)
        stack = re.match(r"(.*(?:decoder|transformer)\.layers\.)(.*)", name)
        if stack is not None:
            state |= {f"{stack[1]}{index}.{stack[2]}": layer for index, layer in enumerate(values)}
        else:
            state[name] = values
    return state


def _run(step: str, *paths: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [os.environ["NEMO_PYTHON"], str(_SIDE / "steps.py"), step, *map(str, paths)],
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        cwd=paths[-1].parent,
        capture_output=True,
        text=True,
        timeout=_STEP_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
