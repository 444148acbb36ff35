"""Flags that are not the seed's; those are in tests/test_seed_flags.py."""

import pytest

from triton_worker.engine.limits import EngineLimits
from triton_worker.serving.flags import parse_worker_flags

REQUIRED = ["-nc", "checkpoint", "-tmn", "qwen"]


def limits(*argv: str) -> EngineLimits:
    return parse_worker_flags([*REQUIRED, *argv]).limits


def test_caches_are_on_and_can_be_sized_and_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (limits().prefix_cache, limits().picture_cache_bytes) == (True, None)
    assert (limits().cuda_graphs, limits("--cuda_graphs", "off").cuda_graphs) == (True, False)
    off = limits("--prefix_cache", "off", "--vision_cache_bytes", "0")
    assert (off.prefix_cache, off.picture_cache_bytes) == (False, 0)
    assert (limits().kv_cache_bytes, limits("--kv_cache_bytes", "20000000").kv_cache_bytes) == (None, 20_000_000)
    monkeypatch.setenv("MULTIMODAL_PREFIX_CACHE", "off")
    monkeypatch.setenv("MULTIMODAL_VISION_CACHE_BYTES", "5000000000")
    assert (limits().prefix_cache, limits().picture_cache_bytes) == (False, 5_000_000_000)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--prefix_cache", "yes"], "'yes' is none of on, off"),
        (["--vision_cache_bytes", "1GiB"], "'1GiB' is not a whole number of bytes"),
        (["--vision_cache_bytes", "-1"], "'-1' is not a whole number of bytes"),
    ],
)
def test_what_makes_no_sense_is_refused(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        limits(*argv)
    assert exit_.value.code == 2
    assert told in capsys.readouterr().err
