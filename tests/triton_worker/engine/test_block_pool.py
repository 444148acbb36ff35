import pytest

from triton_worker.engine.block_pool import BlockPool


def test_each_block_is_handed_out_once() -> None:
    pool = BlockPool(3)
    blocks = pool.take(3)
    assert sorted(blocks) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="0 free"):
        pool.take(1)
    pool.give_back(blocks[:1])
    assert pool.take(1) == blocks[:1]


def test_a_shared_block_is_free_when_the_last_holder_gave_it_back() -> None:
    pool = BlockPool(2)
    [block] = pool.take(1)
    pool.remember(block, b"a")
    assert pool.find([b"a", b"b"]) == [block]
    pool.share([block])
    pool.give_back([block])
    assert pool.free_count == 1
    assert pool.leak is not None
    pool.give_back([block])
    assert pool.free_count == 2
    assert pool.leak is None
    assert pool.find([b"a"]) == [block]


def test_what_was_given_back_longest_ago_is_forgotten_first_and_ends_of_sequences_before_beginnings() -> None:
    pool = BlockPool(4)
    old, young = pool.take(2), pool.take(2)
    for block, key in zip(old + young, [b"o1", b"o2", b"y1", b"y2"], strict=True):
        pool.remember(block, key)
    pool.give_back(old)
    pool.give_back(young)
    assert pool.take(1) == [old[1]]
    assert pool.find([b"o1", b"o2"]) == [old[0]]
    assert pool.take(1) == [old[0]]
    assert pool.take(1) == [young[1]]
    assert pool.find([b"y1", b"y2"]) == [young[0]]
    assert pool.free_count == 1


def test_empty_blocks_are_taken_before_known_ones() -> None:
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.remember(first, b"a")
    pool.give_back([first])
    pool.give_back([second])
    assert pool.take(1) == [second]


def test_room_does_not_count_blocks_twice_that_are_to_be_shared() -> None:
    pool = BlockPool(3)
    [block] = pool.take(1)
    pool.remember(block, b"a")
    pool.give_back([block])
    assert pool.has_room(3, [])
    assert pool.has_room(2, [block])
    assert not pool.has_room(3, [block])


def test_a_block_keeps_its_first_key_and_a_key_its_first_block() -> None:
    pool = BlockPool(2)
    first, second = pool.take(2)
    pool.remember(first, b"a")
    pool.remember(second, b"a")
    pool.remember(first, b"b")
    assert pool.find([b"a"]) == [first]
    assert pool.find([b"b"]) == []
    pool.give_back([second])
    pool.give_back([first])
    assert pool.take(2) == [second, first]
    assert pool.find([b"a"]) == []
