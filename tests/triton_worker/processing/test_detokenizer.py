import hypothesis.strategies as st
from hypothesis import given

from triton_worker.processing.detokenizer import Detokenizer, StopStrings


def decode_bytes(token_ids: list[int]) -> str:
    """A byte-level vocabulary: one token a byte."""
    return bytes(token_ids).decode("utf-8", errors="replace")


@given(st.text())
def test_the_pieces_add_up_to_the_text(text: str) -> None:
    detokenizer = Detokenizer(decode_bytes)
    pieces = [detokenizer.push(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert not any(piece.endswith("\ufffd") for piece in pieces)


def test_an_unfinished_character_is_held_back() -> None:
    detokenizer = Detokenizer(decode_bytes)
    assert [detokenizer.push(byte) for byte in "é!".encode()] == ["", "é", "!"]
    assert detokenizer.push("é".encode()[0]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_bytes_that_never_become_a_character_do_not_pile_up() -> None:
    detokenizer = Detokenizer(decode_bytes)
    said = "".join(detokenizer.push(0xFF) for _ in range(50))
    assert len(said) > 40
    assert said + detokenizer.flush() == "\ufffd" * 50


@given(st.lists(st.integers(0, 255), max_size=40))
def test_whatever_the_bytes_whole_characters_survive(token_ids: list[int]) -> None:
    detokenizer = Detokenizer(decode_bytes)
    said = "".join(detokenizer.push(byte) for byte in token_ids) + detokenizer.flush()
    assert said.replace("\ufffd", "") == decode_bytes(token_ids).replace("\ufffd", "")


def test_text_ends_before_the_first_stop_string() -> None:
    stops = StopStrings(["END", "##"])
    assert stops.push("some text E") == "some text "
    assert not stops.found
    assert stops.push("N") == ""
    assert stops.push("tire ##END") == "ENtire "
    assert stops.found
    assert stops.flush() == ""


@given(st.text(alphabet="ab#"), st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_in_pieces_are_as_in_one(text: str, stops: list[str], data: st.DataObject) -> None:
    stop_strings = StopStrings(stops)
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    said, rest = "", text
    while rest and not stop_strings.found:
        size = data.draw(st.integers(1, 3))
        said += stop_strings.push(rest[:size])
        rest = rest[size:]
    found = stop_strings.found
    said += stop_strings.flush()
    if found:
        # Pieces may complete a longer, earlier stop string later than a shorter one; both end the text.
        assert ends
        assert text.startswith(said)
        assert any(text[len(said) :].startswith(stop) for stop in stops)
    else:
        assert not ends
        assert said == text
