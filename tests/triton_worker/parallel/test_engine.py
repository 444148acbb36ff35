"""One model over several processes answers as transformers does, and ends as one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from protocol.messages import RegexGrammar, SamplingParameters
from tests.triton_worker.models.reference import HF_FIXTURE, NEMO_FIXTURE, make_prompt, their_greedy
from tests.triton_worker.models.test_qwen2_5_vl_parity import random_checkpoint
from tests.triton_worker.parallel.engine_harness import IMAGE_PAD, RunningEngine, request, running, settings
from triton_worker.models.qwen_vl.prompts import TOKENIZER as QWEN
from triton_worker.parallel import Layout
from triton_worker.processing.tokenizer import Tokenizer

PROMPTS = [
    make_prompt([(4, 6)], IMAGE_PAD, seed=1),
    make_prompt([], IMAGE_PAD, seed=2, text_tokens=40),
    make_prompt([(3, 5), (5, 3)], IMAGE_PAD, seed=3),
    make_prompt([(2, 2), (7, 3), (1, 1)], IMAGE_PAD, seed=5),
]
VOCABULARY = Tokenizer(HF_FIXTURE, QWEN).size  # what follows is padding, and never drawn
HOT = SamplingParameters(temperature=1.0)
GRAMMAR = SamplingParameters(temperature=1.0, grammar=RegexGrammar("[a-f]{2,30}"), presence_penalty=0.5, logprobs=2)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(HF_FIXTURE, dtype=torch.float32).eval()
    return [their_greedy(theirs, prompt, 24, VOCABULARY)[1] for prompt in PROMPTS]


@pytest.fixture(
    scope="module",
    params=[
        (Layout(1, 1), False),
        (Layout(2, 1), False),
        (Layout(2, 1), True),
        (Layout(1, 2), True),  # asked for, but not possible
        (Layout(2, 2), False),
    ],
    ids=["1x1", "2x1", "2x1, steps overlap", "1x2", "2x2"],
)
def engine(request: pytest.FixtureRequest) -> Iterator[RunningEngine]:
    layout, overlap = request.param
    asked = settings(NEMO_FIXTURE, layout)
    with running(replace(asked, limits=replace(asked.limits, overlap_steps=overlap))) as engine:
        yield engine


def test_a_crowd_with_a_cancel_in_the_middle_is_answered_as_by_transformers(
    engine: RunningEngine, expected: list[list[int]]
) -> None:
    crowd = [request(str(i), prompt) for i, prompt in enumerate(PROMPTS)]
    cancelled = request("cancelled", PROMPTS[0], HOT, max_tokens=300)
    others = [request("hot", PROMPTS[2], HOT), request("grammar", PROMPTS[1], GRAMMAR, max_tokens=40)]
    answers = engine.answers(crowd[0], cancelled, *crowd[1:], *others, cancel="cancelled")
    assert [answers[str(i)] for i in range(len(PROMPTS))] == expected
    assert 5 <= len(answers["cancelled"]) < 300
    assert len(answers["hot"]) == 24
    assert 1 <= len(answers["grammar"]) < 40, "complete before it is cut off"


def test_progress_counts_every_rank(engine: RunningEngine) -> None:
    last = engine.progress[-1]
    assert last.done == last.total
    assert [p.done for p in engine.progress] == sorted(p.done for p in engine.progress)
    model_bytes = sum(
        p.numel() * 4 for p in Qwen2_5_VLForConditionalGeneration.from_pretrained(HF_FIXTURE).parameters()
    )
    assert last.total >= model_bytes  # replicated parts count on each rank


def test_more_ranks_than_kv_heads_rows_that_do_not_divide_and_tied_embeddings(tmp_path: Path) -> None:
    text = {
        "vocab_size": 415, "hidden_size": 128, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [4, 6, 6]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40,
        "out_hidden_size": 128, "fullatt_block_indexes": [1], "window_size": 112,
    }  # fmt: skip
    random_checkpoint(tmp_path, text, vision, tied=True)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with running(settings(tmp_path, Layout(2, 2), tokenizer=HF_FIXTURE)) as engine:
        answers = engine.answers(*(request(str(i), prompt) for i, prompt in enumerate(PROMPTS)))
    assert [answers[str(i)] for i in range(len(PROMPTS))] == [
        their_greedy(theirs, prompt, 24, VOCABULARY)[1] for prompt in PROMPTS
    ]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout(3, 1), "--tensor_parallel_size 3 does not divide the model's 4 attention heads"),
        (Layout(1, 3), "--pipeline_parallel_size 3 is more than the model's 2 layers"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused(layout: Layout, words: str) -> None:
    engine = RunningEngine(settings(NEMO_FIXTURE, layout))
    engine.wait_exit()
    assert engine.failure is not None
    assert words in engine.failure


def test_a_rank_that_is_killed_takes_all_with_it_at_once() -> None:
    with running(settings(NEMO_FIXTURE, Layout(1, 2))) as engine:
        engine.process.send(request("long", PROMPTS[0], max_tokens=400))
        next(engine.tokens())
        pids = [pid for pid in engine.process.pids if pid is not None]
        os.kill(pids[1], signal.SIGKILL)
        assert engine.wait_exit() < 10
        assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_rank_that_hangs_is_not_waited_for_beyond_the_deadline() -> None:
    with running(settings(NEMO_FIXTURE, Layout(2, 1), exchange_seconds=5.0)) as engine:
        pids = [pid for pid in engine.process.pids if pid is not None]
        os.kill(pids[1], signal.SIGSTOP)
        engine.process.send(request("stuck", PROMPTS[1]))
        assert engine.wait_exit() < 30
        assert engine.failure is not None
        assert "did not answer in time" in engine.failure
        assert not any(psutil.pid_exists(pid) for pid in pids)
