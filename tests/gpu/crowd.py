"""A crowd of requests of all kinds, and the engines that answer it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.triton_worker.engine.test_engine import generate
from tests.triton_worker.engine.test_grammar import DEMO
from tests.triton_worker.engine.test_overlap import SAMPLING
from tests.triton_worker.models.reference import NEMO_FIXTURE, make_prompt
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine
from triton_worker.engine.grammar import GrammarCompiler
from triton_worker.engine.kv_cache import BLOCK_TOKENS, KVCache
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import Generate, NewToken
from triton_worker.models.registry import load_model, prompts_of
from triton_worker.processing.tokenizer import Tokenizer

CHECKPOINTS = {"tiny": NEMO_FIXTURE, "demo": DEMO}
_PICTURES = [[(4, 6)], [], [(3, 5), (5, 3)], [(1, 9)], [(2, 2), (7, 3), (1, 1)], []]


class Deployment:
    """A checkpoint's model on a device, in float32."""

    def __init__(self, checkpoint: Path, device: str) -> None:
        opened = open_checkpoint(checkpoint)
        tokenizer = Tokenizer(opened.tokenizer_directory, prompts_of(opened.family).TOKENIZER)
        self.model = load_model(opened, torch.float32, torch.device(device))
        self.image_token = tokenizer.image_token_id
        self._grammars = GrammarCompiler(tokenizer.to_json(), tokenizer.size, tokenizer.end_token_ids, threads=1)

    def engine(self, blocks: int = 64, **sizes: int) -> Engine:
        """Warmed up, with so many KV blocks."""
        model = self.model
        block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
        limits = {"context_length": blocks * BLOCK_TOKENS, "max_sequences": 8, **sizes}
        engine = Engine(
            model, self.image_token, 4096, EngineLimits(kv_cache_bytes=blocks * block_bytes, **limits), self._grammars
        )
        engine.warm_up()
        return engine

    def crowd(self) -> list[Generate]:
        """With pictures and without, each sampled in another way."""
        return [
            generate(str(i), make_prompt(sizes, self.image_token, seed=i, text_tokens=9), SAMPLING[i], 24, seed=i)
            for i, sizes in enumerate(_PICTURES)
        ]


def answers(engine: Engine, requests: list[Generate]) -> dict[str, list[NewToken]]:
    """What all of them together are answered."""
    for request in requests:
        engine.add(request)
    made: dict[str, list[NewToken]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        output = engine.step()
        assert not output.failed
        for token in output.tokens:
            made[token.request_id].append(token)
    return made


def assert_same(ours: dict[str, list[NewToken]], expected: dict[str, list[NewToken]]) -> None:
    """The same tokens, and log probabilities that rounding in float32 explains."""
    assert {name: [t.token_id for t in ours[name]] for name in ours} == {
        name: [t.token_id for t in expected[name]] for name in ours
    }
    for name in ours:
        for token, other in zip(ours[name], expected[name], strict=True):
            assert (token.logprobs is None) == (other.logprobs is None)
            if token.logprobs is not None and other.logprobs is not None:
                assert token.logprobs.chosen == pytest.approx(other.logprobs.chosen, abs=1e-3)
                likeliest = [p for _, p in other.logprobs.likeliest]
                assert [p for _, p in token.logprobs.likeliest] == pytest.approx(likeliest, abs=1e-3)
