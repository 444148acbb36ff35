"""The engine over the paged kernels: the same tokens as over plain attention."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from tests.triton_worker.engine.test_engine import IMAGE_PAD, PROMPTS, generate, limits, run
from tests.triton_worker.models import mllama
from tests.triton_worker.models.mllama import TILE_TOKENS
from tests.triton_worker.models.reference import NEMO_FIXTURE
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.attention import PlainAttention
from triton_worker.engine.cuda_graphs import GraphLadder
from triton_worker.engine.decode_graphs import DecodeGraphs
from triton_worker.engine.engine import Engine
from triton_worker.engine.messages import Generate
from triton_worker.engine.paged_attention import PagedAttention
from triton_worker.engine.prefill_graphs import PrefillGraphs
from triton_worker.engine.runner import ModelRunner
from triton_worker.engine.scheduler import Chunk
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.registry import load_model

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU all tests of the engine run over them")


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, torch.device("cpu"))


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines attend as on a GPU."""

    def attention(runner: ModelRunner, chunks: list[Chunk]) -> PagedAttention:
        return PagedAttention.of(chunks, runner._cache, torch.device("cpu"))

    monkeypatch.setattr(ModelRunner, "_attention", attention)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=16))


@pytest.fixture(scope="module")
def requests() -> list[Generate]:
    return [generate(str(i), PROMPTS[i], max_tokens=3) for i in (3, 5)]


@pytest.fixture(scope="module")
def expected(model: MultimodalModel, requests: list[Generate]) -> dict[str, list[int]]:
    return run(Engine(model, IMAGE_PAD, 4096, limits(64, model)), *requests)


@pytest.mark.usefixtures("paged")
def test_the_engine_makes_the_same_tokens(
    model: MultimodalModel, requests: list[Generate], expected: dict[str, list[int]]
) -> None:
    engine = Engine(model, IMAGE_PAD, 4096, limits(64, model, max_prefill_tokens=9))
    assert run(engine, *requests) == expected


@pytest.mark.usefixtures("paged")
def test_steps_padded_to_a_recorded_size_make_the_same_tokens(
    model: MultimodalModel,
    requests: list[Generate],
    expected: dict[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GraphLadder, "replay", lambda ladder, size: ladder.compute(size))
    engine = Engine(model, IMAGE_PAD, 4096, limits(64, model, max_prefill_tokens=9))
    runner = engine._runner
    graphs = PrefillGraphs(model, runner._cache, 4, [4, 12], 64)
    runner._model_forward = graphs.forward
    for parameter in (graphs._embeddings, graphs._output):
        parameter.fill_(torch.nan)
    assert run(engine, *requests) == expected


@pytest.mark.usefixtures("paged")
def test_pictures_beside_a_sequence_are_attended_to_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(open_checkpoint(mllama.save_random(tmp_path)), torch.float32, torch.device("cpu"))
    prompts = [mllama.make_prompt(4, (1, 2), (1, 1), 5, (1, 1), 2), mllama.make_prompt(5, seed=1)]
    asked = [generate(str(i), prompt, max_tokens=3) for i, prompt in enumerate(prompts)]
    sizes = limits(64, model, context_length=64)
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(ModelRunner, "_attention", lambda runner, chunks: PlainAttention(chunks, runner._cache))
        expected = run(Engine(model, mllama.IMAGE, 64, sizes), *asked)
    engine = Engine(model, mllama.IMAGE, 64, replace(sizes, max_prefill_tokens=7))
    assert run(engine, *asked) == expected

    # And what graphs would compute, from the inputs that they would read.
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, pin_memory=False, **more: zeros(*shape, **more))
    monkeypatch.setattr(GraphLadder, "replay", lambda ladder, size: ladder.compute(size))
    engine = Engine(model, mllama.IMAGE, 64, sizes)
    runner = engine._runner
    decode = DecodeGraphs(model, runner._cache, runner._drawn, [1, 2], 64)
    prefill = PrefillGraphs(model, runner._cache, 2, [8, 24], 64)
    runner._graphs, runner._model_forward = decode, prefill.forward
    assert run(engine, *asked) == expected
    assert decode._inputs[:2, 5].tolist() == [TILE_TOKENS, 0], "the last pictures that they saw"
