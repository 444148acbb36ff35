"""Each rank reads its own part of the weights, whatever the checkpoint's layout, and little else passes its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.triton_worker.checkpoint.test_slices import bytes_read
from tests.triton_worker.models.reference import HF_FIXTURE, NEMO_FIXTURE
from tests.triton_worker.models.test_qwen2_5_vl_parity import random_checkpoint
from tests.triton_worker.models.test_qwen2_5_vl_weights import Tensors, in_memory, number_layers
from triton_worker.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from triton_worker.convert import main
from triton_worker.models.registry import load_model
from triton_worker.parallel import Ranks

CPU = torch.device("cpu")
GRIDS = [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]
ORIGINS = {
    "nemo": lambda: open_checkpoint(NEMO_FIXTURE),
    "nemo, numbered layers": lambda: in_memory(NEMO_FIXTURE, number_layers),
    "huggingface": lambda: open_checkpoint(HF_FIXTURE),
}


def parts(checkpoint: Checkpoint, tensor_size: int, pipeline_size: int) -> list[dict[str, Tensor]]:
    """The parameters of each rank."""
    loaded = []
    for rank in range(tensor_size * pipeline_size):
        stage, tensor_rank = divmod(rank, tensor_size)
        ranks = Ranks(tensor_rank, tensor_size, stage, pipeline_size)
        model = load_model(checkpoint, torch.float32, CPU, ranks=ranks)
        assert isinstance(model, torch.nn.Module)
        loaded.append(dict(model.named_parameters()))
    return loaded


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize(("tensor_size", "pipeline_size"), GRIDS, ids=str)
def test_what_the_ranks_hold_is_cut_from_the_whole(origin: str, tensor_size: int, pipeline_size: int) -> None:
    [whole] = parts(open_checkpoint(HF_FIXTURE), 1, 1)
    ranks = parts(ORIGINS[origin](), tensor_size, pipeline_size)
    for stage in range(pipeline_size):
        of_stage = ranks[stage * tensor_size : (stage + 1) * tensor_size]
        first_layer = stage * 2 // pipeline_size
        for name in of_stage[0]:
            if name.startswith("decoder.layers."):
                place, rest = name.removeprefix("decoder.layers.").split(".", 1)
                expected = whole[f"decoder.layers.{int(place) + first_layer}.{rest}"]
            else:
                expected = whole[name]
            assert torch.equal(joined(name, [rank[name] for rank in of_stage]), expected), name


def joined(name: str, shards: list[Tensor]) -> Tensor:
    """The whole parameter from those of a stage's ranks."""
    if len(shards) == 1 or name.startswith("vision.") or "norm" in name:
        assert all(torch.equal(shard, shards[0]) for shard in shards)
        return shards[0]
    if ".qkv_proj." in name:
        heads = [shard.unflatten(0, (-1, 128)) for shard in shards]
        queries, groups = 4 // len(shards), max(1, 2 // len(shards))
        replicas = max(1, len(shards) // 2)
        pieces = [torch.split(h, [queries, groups, groups]) for h in heads]
        query = torch.cat([p[0] for p in pieces])
        key, value = (torch.cat([p[i] for p in pieces[::replicas]]) for i in (1, 2))
        return torch.cat((query, key, value)).flatten(0, 1)
    if ".gate_up_proj." in name:
        halves = [shard.chunk(2) for shard in shards]
        return torch.cat([h[0] for h in halves] + [h[1] for h in halves])
    return torch.cat(shards, dim=1 if name.endswith(("output_proj.weight", "down_proj.weight")) else 0)


def test_a_stage_reads_no_tensor_of_another() -> None:
    class Recording(Tensors):
        read_names: list[str] = []  # noqa: RUF012

        def read(self, name: str, *slices: slice) -> Tensor:
            self.read_names.append(name)
            return super().read(name, *slices)

    checkpoint = in_memory(HF_FIXTURE)
    assert isinstance(checkpoint.weights, Tensors)
    recording = Recording(checkpoint.weights.tensors)
    load_model(replace(checkpoint, weights=recording), torch.float32, CPU, ranks=Ranks(0, 1, 1, 2))
    assert not any(name.startswith(("visual.", "model.layers.0.", "model.embed")) for name in recording.read_names)
    assert len(recording.read_names) == len(set(recording.read_names))


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "visual.blocks.7.norm1.weight", "model.layers.1.more.weight"]
)
def test_a_tensor_that_is_nobodys_is_found_by_one_of_the_ranks(name: str) -> None:
    checkpoint = in_memory(HF_FIXTURE, lambda tensors: tensors.update({name: torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="no place for"):
        parts(checkpoint, 1, 2)


MEASURE = """
import sys, threading, torch
from triton_worker.checkpoint import open_checkpoint
from triton_worker.models.registry import load_model
from triton_worker.parallel import Ranks

def own_memory():  # without the page cache's
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) * 1024

peak, ended = 0, threading.Event()
def watch():
    global peak
    while not ended.wait(0.0005):
        peak = max(peak, own_memory())

load_model(open_checkpoint(sys.argv[2]), torch.float32, torch.device("cpu"))  # what is imported and begun only once
checkpoint = open_checkpoint(sys.argv[1], sys.argv[2])
ranks = Ranks(*map(int, sys.argv[3:]))
before = own_memory()
threading.Thread(target=watch).start()
model = load_model(checkpoint, torch.float32, torch.device("cpu"), None, ranks)
ended.set()
print((peak - before) / sum(parameter.numel() * 4 for parameter in model.parameters()))
"""


@pytest.fixture(scope="module")
def stored_whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of 420 MB in each layout that know nothing of ranks: no chunk is less than a layer's matrix."""
    place = tmp_path_factory.mktemp("stored_whole")
    text = {
        "vocab_size": 2000, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40,
        "out_hidden_size": 1024, "fullatt_block_indexes": [0], "window_size": 112,
    }  # fmt: skip
    random_checkpoint(place / "huggingface", text, vision, tied=False)
    main(["hf-to-nemo", str(place / "huggingface"), str(place / "nemo"), "--tokenizer", str(HF_FIXTURE)])
    return {layout: place / layout for layout in ("huggingface", "nemo")}


@pytest.mark.parametrize("layout", ["huggingface", "nemo"])
@pytest.mark.parametrize("ranks", [(1, 2, 1, 2), (3, 4, 0, 1)], ids=["TP 2, PP 2", "TP 4"])
def test_loading_takes_little_more_than_the_ranks_own_weights(
    stored_whole: dict[str, Path], layout: str, ranks: tuple[int, ...]
) -> None:
    command = [sys.executable, "-c", MEASURE, stored_whole[layout], HF_FIXTURE, *map(str, ranks)]
    # Or glibc would keep up to 64 MB that are free again, which is nothing beside the weights of a real model.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    measured = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert 0.9 < float(measured.stdout) < 1.3


@pytest.mark.parametrize("tensor_size", [1, 2, 4])
def test_a_rank_reads_little_more_than_its_own_weights(stored_whole: dict[str, Path], tensor_size: int) -> None:
    checkpoint = open_checkpoint(stored_whole["nemo"], HF_FIXTURE)
    before = bytes_read()
    ranks = Ranks(tensor_size - 1, tensor_size, 0, 1)
    model = load_model(checkpoint, torch.float32, CPU, ranks=ranks)
    read = bytes_read() - before
    assert isinstance(model, torch.nn.Module)
    own = {name: parameter.numel() * 4 for name, parameter in model.named_parameters()}
    # What is divided by columns is cut out of whole rows.
    columns = sum(size for name, size in own.items() if name.endswith(("output_proj.weight", "down_proj.weight")))
    assert read <= 1.02 * (sum(own.values()) + (tensor_size - 1) * columns)
