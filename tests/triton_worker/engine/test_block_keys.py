"""What makes two blocks equal, and everything that makes them different."""

import numpy as np
import pytest

from tests.triton_worker.engine.sequences import IMAGE, picture_of, sequence
from triton_worker.engine.kv_cache import BLOCK_TOKENS
from triton_worker.engine.messages import Picture
from triton_worker.engine.sequence import Sequence

TEXT = list(range(100, 100 + 4 * BLOCK_TOKENS))
PICTURE, OTHER = picture_of(20, 1), picture_of(20, 2)


def keys(of: Sequence) -> list[bytes]:
    return of.block_keys(0, of.token_count)


def test_equal_beginnings_have_equal_keys_up_to_the_first_difference() -> None:
    one = keys(sequence("a", TEXT))
    other = keys(sequence("b", [*TEXT[:40], 1, *TEXT[41:]]))
    assert len(one) == 4
    assert one[:2] == other[:2]
    assert not set(one[2:]) & set(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sequence("a", TEXT), sequence("b", TEXT, cache_salt="x")),
        (sequence("a", TEXT, cache_salt="x"), sequence("b", TEXT, cache_salt="y")),
        (sequence("a", [PICTURE, *TEXT]), sequence("b", [OTHER, *TEXT])),
        (sequence("a", [PICTURE, *TEXT]), sequence("b", [IMAGE] * 20 + TEXT)),
        (sequence("a", [PICTURE, OTHER, *TEXT]), sequence("b", [OTHER, PICTURE, *TEXT])),
        (sequence("a", [picture_of(8, 1), picture_of(8, 2)]), sequence("b", [picture_of(16, 1)])),
        (sequence("a", [picture_of(8, 1), *[IMAGE] * 8]), sequence("b", [picture_of(8, 1), picture_of(8, 1)])),
    ],
)
def test_whatever_differs_makes_different_keys(one: Sequence, other: Sequence) -> None:
    assert not set(keys(one)) & set(keys(other))


def test_blocks_of_the_same_tokens_at_another_place_differ() -> None:
    same = keys(sequence("a", [5] * 4 * BLOCK_TOKENS))
    assert len(set(same)) == 4
    inside_one_picture = keys(sequence("b", [picture_of(4 * BLOCK_TOKENS)]))
    assert len(set(inside_one_picture)) == 4


def test_a_picture_is_known_again_behind_the_same_text() -> None:
    question = TEXT[:10]
    assert keys(sequence("a", [*question, PICTURE, 1])) == keys(sequence("b", [*question, picture_of(20, 1), 2]))[:1]


def test_generated_tokens_fill_blocks_like_those_of_a_prompt() -> None:
    grown = sequence("a", TEXT[:20])
    assert len(keys(grown)) == 1
    grown.output_token_ids += TEXT[20:]
    assert keys(grown) == keys(sequence("b", TEXT))
    assert grown.block_keys(2 * BLOCK_TOKENS, 3 * BLOCK_TOKENS + 5) == keys(grown)[2:3]


def test_pictures_of_equal_bytes_and_other_shapes_have_other_digests() -> None:
    wide, high = np.zeros((28, 56, 3), np.uint8), np.zeros((56, 28, 3), np.uint8)
    assert Picture.of(wide).digest != Picture.of(high).digest
    assert Picture.of(wide).digest == Picture.of(wide.copy()).digest
    turned = np.zeros((56, 28, 3), np.uint8).transpose(1, 0, 2)  # not contiguous
    assert Picture.of(wide).digest == Picture.of(turned).digest
    one_pixel = wide.copy()
    one_pixel[0, 0, 0] = 1
    assert Picture.of(wide).digest != Picture.of(one_pixel).digest
