"""The memory of a GPU: what the engine takes for itself is enough, and does not grow."""

import gc
from collections.abc import Iterator

import pytest
import torch

from protocol.messages import SamplingParameters
from tests.gpu.crowd import CHECKPOINTS, Deployment, answers
from tests.triton_worker.engine.test_engine import generate
from tests.triton_worker.models.reference import make_prompt
from triton_worker.engine.engine import Engine
from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.limits import EngineLimits

PART = 3 * 2**30


@pytest.fixture(scope="module")
def tiny() -> Deployment:
    return Deployment(CHECKPOINTS["tiny"], "cuda")


@pytest.fixture
def free_bytes(tiny: Deployment) -> Iterator[int]:
    """What is free, of which :data:`PART` is all that this process may take beside the weights."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + PART) / total)
    yield free
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_full_cache_leaves_room_for_the_largest_step(tiny: Deployment, free_bytes: int) -> None:
    model = tiny.model
    limits = EngineLimits(
        max_sequences=64,
        context_length=2**15,
        picture_cache_bytes=2**26,
        gpu_memory_fraction=PART / free_bytes,
    )
    engine = Engine(model, tiny.image_token, 2**15, limits)
    engine.warm_up()
    block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
    assert PART / 3 < engine.status.total_blocks * block_bytes < PART
    sampling = SamplingParameters(temperature=1.0, top_p=0.9)
    prompts = [make_prompt([(35, 36)] * 3, tiny.image_token, seed=seed) for seed in range(24)]
    made = answers(engine, [generate(str(i), prompt, sampling, 20, seed=i) for i, prompt in enumerate(prompts)])
    assert [len(tokens) for tokens in made.values()] == [20] * len(prompts)


def test_hundreds_of_requests_leave_memory_as_it_was(tiny: Deployment) -> None:
    engine = tiny.engine(picture_cache_bytes=0)

    def taken(rounds: int) -> tuple[int, int]:
        for _ in range(rounds):
            answers(engine, tiny.crowd())
        gc.collect()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    few = taken(10)
    assert taken(60) == few
