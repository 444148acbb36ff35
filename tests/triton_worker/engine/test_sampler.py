import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from protocol.messages import SamplingParameters
from tests.triton_worker.engine import sampling_rows
from tests.triton_worker.engine.sampling_rows import plain_token, row, sampled, tokens
from triton_worker.engine.sampler import SamplingBatch, uniform
from triton_worker.engine.sequence import Sequence

VOCABULARY = 60
token_ids = st.integers(0, VOCABULARY - 1)
parameters = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 40, 1000, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 0.0, 0.313, 0.9]),
    min_p=st.sampled_from([0.0, 0.0, 0.037, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.7, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, -2.0, 1.1]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.4, 2.0]),
    logit_bias=st.dictionaries(token_ids, st.sampled_from([-100.0, -1.3, 0.9, 100.0]), max_size=3),
    logprobs=st.sampled_from([None, None, 0, 3]),
)
rows = st.builds(
    row,
    parameters,
    st.integers(-(2**63), 2**63 - 1),
    st.lists(token_ids, min_size=1, max_size=6),
    st.lists(token_ids, max_size=6),
)


def again(sequence: Sequence) -> Sequence:
    """The same, as the sampler has never seen it."""
    request = sequence.request
    return row(request.sampling, request.seed, request.prompt_token_ids, sequence.output_token_ids)


def draws(logits: list[float], count: int, **fields: object) -> list[int]:
    """Tokens drawn with as many seeds."""
    sampling = SamplingParameters(**fields)  # type: ignore[arg-type]
    return tokens(torch.tensor(logits).expand(count, -1), [row(sampling, seed) for seed in range(count)])


@settings(max_examples=100, deadline=None)
@given(batch=st.lists(rows, min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_each_row_of_a_mixed_batch_is_what_the_plain_sampler_chooses_alone(batch: list[Sequence], seed: int) -> None:
    logits = torch.randn(len(batch), VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3
    together = sampled(logits, batch)
    assert [t.token_id for t in together] == [plain_token(logits[i].tolist(), s) for i, s in enumerate(batch)]
    alone = [sampled(logits[i : i + 1], [again(s)])[0] for i, s in enumerate(batch)]
    assert [t.token_id for t in together] == [t.token_id for t in alone]
    for token, sequence, line in zip(together, batch, logits, strict=True):
        asked = sequence.request.sampling.logprobs
        if asked is None:
            assert token.logprobs is None
            continue
        assert token.logprobs is not None
        expected = line.log_softmax(-1)  # of the model itself, whatever the parameters
        assert token.logprobs.chosen == pytest.approx(expected[token.token_id].item(), abs=1e-5)
        best = expected.topk(asked)
        assert [i for i, _ in token.logprobs.likeliest] == best.indices.tolist()
        assert [p for _, p in token.logprobs.likeliest] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_counts_grow_with_the_answer() -> None:
    """One sequence over many steps, joined and left by others, is penalised as if it were counted anew each time."""
    sampling = SamplingParameters(temperature=0, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.7)
    sequence = row(sampling, prompt=[3, 3, 5])
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        logits = torch.randn(2, VOCABULARY, generator=generator)
        others = [row(sampling, output=[1, 2, 2])] if step % 3 else []
        batch = [*others, sequence] if step % 2 else [sequence, *others]
        chosen = tokens(logits[: len(batch)], batch)
        assert chosen == [plain_token(logits[i].tolist(), s) for i, s in enumerate(batch)]
        sequence.output_token_ids.append(chosen[batch.index(sequence)])


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
    sequence = row(SamplingParameters(repetition_penalty=1.7), prompt=[1, 2, 2, 7], output=[9, 9])
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[1, 2, 2, 7, 9, 9]]), logits.clone())
    penalties = SamplingBatch.of([sequence], VOCABULARY, logits.device).penalties
    assert penalties is not None
    penalties.apply(logits)
    assert torch.equal(logits, theirs)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 7, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (0.7, 20, 0.9, 0.0), (1.5, 0, 1.0, 0.1), (2.0, 2000, 0.95, 0.0)],
)
def test_what_is_kept_is_what_transformers_keeps(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.randn(8, 3000, generator=torch.Generator().manual_seed(2)) * 2
    theirs = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    for warper in (
        *([TopKLogitsWarper(top_k)] if top_k else []),
        *([TopPLogitsWarper(top_p)] if top_p < 1 else []),
        *([MinPLogitsWarper(min_p)] if min_p else []),
    ):
        theirs = warper(None, theirs)
    sampling = SamplingParameters(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    truncation = SamplingBatch.of([row(sampling)] * 8, 3000, logits.device).truncation
    assert truncation is not None
    ours = truncation.apply((logits / temperature).softmax(-1))
    assert torch.equal(ours > 0, theirs > -torch.inf)


def test_uniform_is_splitmix64() -> None:
    for seed in (0, 1, 42, -1, 2**63 - 1, -(2**63)):
        for position in (0, 1, 1000):
            ours = uniform(torch.tensor([seed]), torch.tensor([position])).item()
            assert ours == sampling_rows.uniform(seed, position)


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125])
    drawn = torch.tensor(draws(probabilities.log().tolist(), 20_000))
    assert torch.allclose(torch.bincount(drawn, minlength=4) / 20_000, probabilities, atol=0.015)


def test_equally_likely_tokens_are_kept_or_dropped_together() -> None:
    logits = [2.0, 2.0, 2.0, 0.0, 0.0, -9.0]
    assert set(draws(logits, 500, top_k=1)) == {0, 1, 2}
    assert set(draws(logits, 500, top_k=4)) == {0, 1, 2, 3, 4}
    assert set(draws(logits, 500, top_p=0.1)) == {0, 1, 2}
    assert set(draws(logits, 500, min_p=1.0)) == {0, 1, 2}


def test_a_bias_bans_and_forces() -> None:
    logits = [3.0, 1.0, 0.0]
    assert set(draws(logits, 200, logit_bias={0: -100.0})) == {1, 2}
    assert set(draws(logits, 200, logit_bias={2: 100.0})) == {2}
    assert draws(logits, 1, logit_bias={2: 100.0}, temperature=0.0) == [2]


def test_what_nobody_asks_for_is_not_computed() -> None:
    plain = SamplingBatch.of([row(SamplingParameters())], 10, torch.device("cpu"))
    skipped = (plain.truncation, plain.bias, plain.penalties, plain.grammar, plain.logprobs)
    assert skipped == (None,) * 5
    bounded = SamplingBatch.of([row(SamplingParameters(top_k=50, top_p=0.9))], 10, torch.device("cpu"))
    assert bounded.truncation is not None
    assert [group.widest for group in bounded.truncation.groups] == [50]


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-10, 1e-5])
def test_the_lowest_temperatures_are_greedy(temperature: float) -> None:
    assert draws([1.0, 3.0, 2.0], 1, temperature=temperature) == [1]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("penalty", [1.0, 0.0001, 10.0])
def test_a_row_whose_numbers_broke_spoils_no_other(broken: float, penalty: float) -> None:
    sampling = SamplingParameters(repetition_penalty=penalty, logprobs=2, top_p=0.99)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))

    def drawn(logits: Tensor) -> list[int]:
        return tokens(logits, [row(sampling, seed, output=[1, 2]) for seed in range(3)])

    expected = drawn(logits)
    logits[1] = broken
    now = drawn(logits)
    assert [now[0], now[2]] == [expected[0], expected[2]]
    assert 0 <= now[1] < 50


def test_seeds_and_positions_make_different_draws() -> None:
    logits = torch.zeros(100, 1000)
    hot = SamplingParameters()

    def of_seed(seed: int) -> list[int]:
        return tokens(logits, [row(hot, seed, output=[0] * position) for position in range(100)])

    assert of_seed(1) == of_seed(1)
    assert of_seed(1) != of_seed(2)
    assert len(set(of_seed(1))) > 80
