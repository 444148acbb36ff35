import pytest
import torch
from torch import Tensor

from triton_worker.engine.sampler import SamplingBatch, sample, uniform


def batch(
    rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, first_position: int = 0
) -> SamplingBatch:
    """`rows` consecutive positions of one request."""
    return SamplingBatch(
        temperature=torch.full((rows,), temperature),
        top_k=torch.full((rows,), top_k),
        top_p=torch.full((rows,), top_p),
        seed=torch.full((rows,), seed),
        position=torch.arange(first_position, first_position + rows),
        all_greedy=temperature == 0,
    )


def test_uniform_is_splitmix64() -> None:
    # The first outputs of SplitMix64, computed with Python's integers.
    mask = 2**64 - 1

    def mix(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    for seed in (0, 1, 42, -1, 2**63 - 1, -(2**63)):
        for position in (0, 1, 1000):
            expected = (mix((mix(seed & mask) + (position + 1) * 0x9E3779B97F4A7C15) & mask) >> 11) * 2.0**-53
            assert uniform(torch.tensor([seed]), torch.tensor([position])).item() == expected


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.25, 0.125, 0.125])
    drawn = sample(probabilities.log().expand(40_000, 4), batch(40_000, seed=7))
    frequencies = torch.bincount(drawn, minlength=4) / 40_000
    assert torch.allclose(frequencies, probabilities, atol=0.01)


def test_temperature_sharpens() -> None:
    logits = torch.tensor([1.0, 0.0]).expand(20_000, 2)
    drawn = sample(logits, batch(20_000, temperature=0.5))
    assert (drawn == 0).float().mean().item() == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item(), abs=0.01)


def test_top_k_keeps_the_k_likeliest() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0]).expand(2_000, 4)
    assert set(sample(logits, batch(2_000, top_k=2)).tolist()) == {1, 3}
    assert set(sample(logits, batch(2_000, top_k=1)).tolist()) == {1}
    assert set(sample(logits, batch(2_000, top_k=99)).tolist()) == {0, 1, 2, 3}


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4_000, 4)
    assert set(sample(logits, batch(4_000, top_p=0.6)).tolist()) == {0, 1}
    assert set(sample(logits, batch(4_000, top_p=0.0)).tolist()) == {0}


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(64, 100)
    crowd = SamplingBatch(
        temperature=torch.rand(64) * (torch.arange(64) % 3 > 0),  # every third is greedy
        top_k=torch.randint(0, 20, (64,)),
        top_p=torch.rand(64),
        seed=torch.randint(-(2**62), 2**62, (64,)),
        position=torch.randint(0, 100, (64,)),
        all_greedy=False,
    )
    together = sample(logits, crowd)

    def alone(row: int) -> Tensor:
        one = slice(row, row + 1)
        parameters = SamplingBatch(
            crowd.temperature[one], crowd.top_k[one], crowd.top_p[one], crowd.seed[one], crowd.position[one], False
        )
        return sample(logits[one], parameters)

    assert together.tolist() == [alone(row).item() for row in range(64)]
    assert together[::3].tolist() == logits.argmax(-1)[::3].tolist()


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-10, 1e-5])
def test_the_lowest_temperatures_are_greedy(temperature: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert sample(logits, batch(1, temperature=temperature)).tolist() == [1]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_row_of_broken_logits_leaves_the_others_alone(broken: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 50)
    expected = sample(logits, batch(3))
    logits[1] = broken
    drawn = sample(logits, batch(3))
    assert drawn[[0, 2]].tolist() == expected[[0, 2]].tolist()
    assert 0 <= drawn[1] < 50


def test_seeds_and_positions_make_different_draws() -> None:
    logits = torch.zeros(100, 1000)
    first = sample(logits, batch(100, seed=1))
    assert torch.equal(first, sample(logits, batch(100, seed=1)))
    assert not torch.equal(first, sample(logits, batch(100, seed=2)))
    assert first.unique().numel() > 80
