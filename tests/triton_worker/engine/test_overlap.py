"""A step that is prepared before the tokens of the one before are known makes the same tokens."""

from pathlib import Path

import pytest
import torch

from protocol.messages import RegexGrammar, SamplingParameters
from tests.triton_worker.device import DEVICE
from tests.triton_worker.engine.test_engine import PROMPTS, generate
from tests.triton_worker.models.reference import NEMO_FIXTURE
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine
from triton_worker.engine.grammar import GrammarCompiler
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import NewToken
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.qwen_vl.prompts import TOKENIZER
from triton_worker.models.registry import load_model
from triton_worker.processing.tokenizer import Tokenizer

SAMPLING = [
    SamplingParameters(temperature=0.0),
    SamplingParameters(temperature=1.0, top_p=0.9),
    SamplingParameters(temperature=0.8, repetition_penalty=1.3, frequency_penalty=0.4, logit_bias={5: 4.0}),
    SamplingParameters(temperature=0.0, logprobs=3),
    SamplingParameters(temperature=1.5, grammar=RegexGrammar(pattern="[a-c]{3,9}")),
    SamplingParameters(temperature=1.0, top_k=20, min_p=0.01),
]


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, DEVICE)


@pytest.fixture(scope="module")
def grammars() -> GrammarCompiler:
    tokenizer = Tokenizer(Path(open_checkpoint(NEMO_FIXTURE).tokenizer_directory), TOKENIZER)
    return GrammarCompiler(tokenizer.to_json(), tokenizer.size, tokenizer.end_token_ids, threads=1)


def answers(engine: Engine, stops: frozenset[int]) -> dict[str, list[NewToken]]:
    """All tokens made of the prompts, each with other sampling."""
    for place, (prompt, sampling) in enumerate(zip(PROMPTS, SAMPLING, strict=True)):
        engine.add(generate(str(place), prompt, sampling, max_tokens=20 + place, seed=place, stop_token_ids=stops))
    made: dict[str, list[NewToken]] = {}
    while engine.has_work:
        output = engine.step()
        assert not output.failed
        for token in output.tokens:
            made.setdefault(token.request_id, []).append(token)
    return made


def test_every_way_of_sampling_makes_the_same_tokens(model: MultimodalModel, grammars: GrammarCompiler) -> None:
    results = []
    for overlap in (False, True):
        engine = Engine(model, 412, 4096, EngineLimits(max_sequences=4, overlap_steps=overlap), grammars)
        made = answers(engine, frozenset(range(100)))
        results.append({name: [(t.token_id, t.finish_reason) for t in made[name]] for name in made})
        assert all(token.logprobs is not None for token in made["3"])
        assert engine.status.free_blocks == engine.status.total_blocks
    assert results[0] == results[1]
    assert all(of[-1][1] is not None for of in results[0].values())


def test_a_step_s_tokens_come_with_the_next_one(model: MultimodalModel) -> None:
    engine = Engine(model, 412, 4096, EngineLimits(overlap_steps=True))
    engine.add(generate("one", PROMPTS[0], max_tokens=2))
    made = [len(engine.step().tokens) for _ in range(3)]
    assert made == [0, 1, 1]
    assert not engine.has_work


def test_what_was_dropped_while_a_step_computes_it_is_not_heard_of_again(model: MultimodalModel) -> None:
    engine = Engine(model, 412, 4096, EngineLimits(overlap_steps=True))
    engine.add(generate("dropped", PROMPTS[0]))
    engine.step()
    assert engine.abort("dropped")
    assert engine.has_work
    assert engine.step().tokens == ()
    assert not engine.has_work
    assert engine.status.free_blocks == engine.status.total_blocks
