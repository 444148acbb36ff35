"""Every flag of the seed document, of both commands: its long and its short form, its default, and what it does."""

from __future__ import annotations

import argparse
import json
import operator
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients import query_inframework
from tests.e2e.deployment import FIXTURE, ROOT
from triton_worker import deploy
from triton_worker.serving.flags import add_worker_flags, settings_from
from triton_worker.serving.worker import run_worker

REQUIRED = ["-nc", "checkpoint", "-tmn", "qwen"]

Setting = Callable[[Any], Any]
attribute = operator.attrgetter

# Short form, long form, default, another value as typed and as it arrives, and where it arrives.
WORKER_FLAGS: list[tuple[str, str, Any, str, Any, Setting]] = [
    ("-nc", "--nemo_checkpoint", "checkpoint", "/other", "/other", attribute("nemo_checkpoint")),
    ("-tmn", "--triton_model_name", "qwen", "other", "other", attribute("model_name")),
    ("-tmv", "--triton_model_version", 1, "3", 3, attribute("model_version")),
    ("-trp", "--triton_port", 8000, "9000", 9000, attribute("triton.http_port")),
    ("-tha", "--triton_http_address", "0.0.0.0", "127.0.0.1", "127.0.0.1", attribute("triton.http_address")),
    ("-tps", "--tensor_parallel_size", 1, "2", 2, attribute("tensor_parallel_size")),
    ("-pps", "--pipeline_parallel_size", 1, "2", 2, attribute("pipeline_parallel_size")),
    ("-mbs", "--max_batch_size", 4, "8", 8, attribute("max_batch_size")),
    ("-pd", "--params_dtype", "bfloat16", "float16", "float16", attribute("dtype")),
    ("-ibts", "--inference_batch_times_seqlen_threshold", 1000, "77", 77, attribute("limits.max_prefill_tokens")),
]
GATEWAY_FLAGS = [
    ("-sp", "--server_port", "8080", "9090", "MULTIMODAL_PORT"),
    ("-sa", "--server_address", "0.0.0.0", "127.0.0.1", "MULTIMODAL_HOST"),
]


def parse_deploy(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_worker_flags(parser)
    deploy._add_gateway_flags(parser)
    return parser.parse_args([*REQUIRED, *argv])


@pytest.mark.parametrize(("short", "long", "default", "typed", "arrived", "setting"), WORKER_FLAGS)
def test_a_worker_flag(
    short: str,
    long: str,
    default: Any,
    typed: str,
    arrived: Any,
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert setting(settings_from(parse_deploy())) == default
    assert setting(settings_from(parse_deploy(short, typed))) == arrived
    assert setting(settings_from(parse_deploy(long, typed))) == arrived
    if short not in REQUIRED:
        monkeypatch.setenv("MULTIMODAL_" + long.removeprefix("--").upper(), typed)
        assert setting(settings_from(parse_deploy())) == arrived


@pytest.mark.parametrize("flag", ["-dm", "--debug_mode"])
def test_debug_mode(flag: str) -> None:
    assert not settings_from(parse_deploy()).debug
    assert settings_from(parse_deploy(flag)).debug


def test_the_reference_s_picture_bounds() -> None:
    assert settings_from(parse_deploy()).max_pixels is None
    bound = settings_from(parse_deploy("--reference_image_limits", "--max_pixels", "999999"))
    assert (bound.min_pixels, bound.max_pixels) == (16 * 28 * 28, 64 * 28 * 28)


@pytest.mark.parametrize(("short", "long", "default", "other", "variable"), GATEWAY_FLAGS)
def test_a_gateway_flag(short: str, long: str, default: str, other: str, variable: str) -> None:
    def told(*argv: str) -> str:
        arguments = parse_deploy(*argv)
        return deploy._gateway_environment(arguments, settings_from(arguments))[variable]

    assert told() == default
    assert told(short, other) == told(long, other) == other


@pytest.mark.parametrize("name", ["api_key_file", "cors_origins", "tls_certificate", "tls_key"])
def test_a_flag_that_the_gateway_checks(name: str) -> None:
    variable = f"MULTIMODAL_{name.upper()}"
    for argv, expected in ([], None), ([f"--{name}", "given"], "given"):
        arguments = parse_deploy(*argv)
        assert deploy._gateway_environment(arguments, settings_from(arguments)).get(variable) == expected


@pytest.mark.parametrize(
    "argv",
    [
        ["-pd", "int8"],
        ["-tmv", "0"],
        ["-mbs", "none"],
        ["-tmn", "Qwen/Qwen2.5"],
        ["-tmn", "gateway_deltas"],
        ["--triton_por", "9000"],
    ],
)
def test_a_wrong_flag_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        parse_deploy(*argv)
    assert exited.value.code == 2
    assert argv[0].strip("-") in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there may be enough GPUs")
@pytest.mark.parametrize("flag", ["-tps", "-pps"])
def test_more_ranks_than_gpus_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = parse_deploy("-nc", str(FIXTURE), "--device", "cuda", flag, "2")
    assert run_worker(settings_from(arguments), threading.Event()) == 1
    assert re.fullmatch("error: .*GPU.*\n", capsys.readouterr().err)


# -- query_inframework -------------------------------------------------------------------------------------------------

# Short form, long form, default, another value as typed and as it arrives, and the argument that it becomes.
QUERY_FLAGS: list[tuple[str, str, Any, str, Any, str]] = [
    ("-u", "--url", "0.0.0.0", "host:9000", "host:9000", "url"),
    ("-mol", "--max_output_len", 50, "7", 7, "max_length"),
    ("-mbs", "--max_batch_size", 4, "2", 2, "max_batch_size"),
    ("-tk", "--top_k", 1, "5", 5, "top_k"),
    ("-tpp", "--top_p", 0.0, "0.5", 0.5, "top_p"),
    ("-t", "--temperature", 1.0, "0.5", 0.5, "temperature"),
    ("-rs", "--random_seed", None, "0", 0, "random_seed"),
    ("-it", "--init_timeout", 60.0, "3", 3.0, "init_timeout"),
    ("-i", "--image", [[]], "a.png", [["a.png"]], "images"),
    ("-mn", "--model_name", "qwen", "other", "other", "model_name"),
]


@pytest.fixture
def queried(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asked for, where Triton would be."""
    asked: dict[str, Any] = {}

    class Recorder:
        def __init__(self, url: str, model_name: str) -> None:
            asked.update(url=url, model_name=model_name)

        def query_multimodal(self, **arguments: Any) -> dict[str, Any]:
            asked.update(arguments)
            return {"choices": [{"text": np.array([["An answer."]])}]}

    monkeypatch.setattr(query_inframework, "NemoQueryMultimodalPytorch", Recorder)
    return asked


@pytest.mark.parametrize(("short", "long", "default", "typed", "arrived", "argument"), QUERY_FLAGS)
def test_a_query_flag(
    short: str, long: str, default: Any, typed: str, arrived: Any, argument: str, queried: dict[str, Any]
) -> None:
    query_inframework.main(["-mn", "qwen", "-p", "Hi"])
    assert queried[argument] == default
    for flag in (short, long):
        query_inframework.main(["-mn", "qwen", "-p", "Hi", flag, typed])
        assert queried[argument] == arrived


def test_the_prompt_flags(queried: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Was ist das?\nÄhm.", encoding="utf-8")
    for argv, text in (
        (["-p", "Hi"], "Hi"),
        (["--prompt", "Hi"], "Hi"),
        (["-pf", str(file)], "Was ist das?\nÄhm."),
        (["--prompt_file", str(file)], "Was ist das?\nÄhm."),
    ):
        query_inframework.main(["-mn", "qwen", *argv])
        (prompt,) = queried["prompts"]
        assert json.loads(prompt) == [{"role": "user", "content": [{"type": "text", "text": text}]}]
        assert queried["apply_chat_template"] is True


def test_a_processor_name_that_is_a_directory_renders_here(queried: dict[str, Any]) -> None:
    tokenizer = str(FIXTURE / "context" / "nemo_tokenizer")
    query_inframework.main(["-mn", "qwen", "-p", "Hi", "-i", "a.png", "b.png"])
    assert queried["apply_chat_template"] is True
    assert queried["images"] == [["a.png", "b.png"]]
    for flag in ("-pn", "--processor_name"):
        query_inframework.main(["-mn", "qwen", "-p", "Hi", "-i", "a.png", "-i", "b.png", flag, tokenizer])
        assert queried["apply_chat_template"] is False
        assert queried["prompts"][0].count("<|vision_start|><|image_pad|><|vision_end|>") == 2
        assert queried["images"] == [["a.png", "b.png"]]


@pytest.mark.parametrize("argv", [["-p", "Hi"], ["-mn", "qwen"], ["-mn", "qwen", "-p", "Hi", "-pf", "file"]])
def test_what_the_query_command_needs(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        query_inframework.main(argv)
    assert exited.value.code == 2


def test_what_the_query_command_prints(queried: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    query_inframework.main(["-mn", "qwen", "-p", "Hi"])
    assert capsys.readouterr().out == "{'choices': [{'text': array([['An answer.']], dtype='<U10')}]}\n"
    query_inframework.main(["-mn", "qwen", "-p", "Hi", "--json"])
    assert capsys.readouterr().out == '{"choices": [{"text": [["An answer."]]}]}\n'


# -- help --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deploy_inframework_triton", "query_inframework"])
def test_help_fits_80_columns_and_tells_every_flag(name: str) -> None:
    script = ROOT / "scripts" / "deploy" / "multimodal" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        env={"COLUMNS": "80", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    words = done.stdout.replace(",", " ").split()
    if name == "deploy_inframework_triton":
        flags = [f for row in (*WORKER_FLAGS, *GATEWAY_FLAGS) for f in row[:2]] + ["-dm", "--debug_mode"]
    else:
        flags = [f for row in QUERY_FLAGS for f in row[:2]]
        flags += ["-p", "--prompt", "-pf", "--prompt_file", "-pn", "--processor_name", "--stream", "--json"]
    assert set(flags) <= set(words)
