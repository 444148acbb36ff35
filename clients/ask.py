"""The command ``ask``: a question about pictures, answered in the terminal.

ask picture.jpg "What is in this picture?"
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

from clients.rest import MultimodalClient, MultimodalError, PictureError, RetryPolicy, Sampling
from clients.rest.client import DEFAULT_URL

_DESCRIPTION = """Ask a question about pictures; the answer is printed as it is generated.

Instead of one picture, or instead of the question, - reads it from standard input:

  ask photo.jpg "What is this?"
  ask before.png after.png "What has changed?"
  curl -s http://camera.example/now.jpg | ask - "How many people are there?"
  ask photo.jpg - < question.txt
"""

_ENVIRONMENT = "MULTIMODAL_URL has the URL where --url does not; MULTIMODAL_API_KEY, if set, is sent with the question."


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0, with 1 when there is no answer, with 2 for wrong arguments and with 130 after Ctrl-C."""
    asked = _parsed(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold characters that the terminal has not
    try:
        _ask(asked)
    except PictureError as error:
        sys.exit(f"ask: {error} (Pictures come first, the question last.)")
    except MultimodalError as error:
        sys.exit(f"ask: {error}")
    except BrokenPipeError:  # whoever reads the answer has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    asked = parser.parse_intermixed_args(arguments[:end])  # it does not know what -- is for
    words = [*asked.words, *arguments[end + 1 :]]
    if not words:
        parser.error("a question is needed")
    *asked.pictures, asked.question = words
    return asked


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ask",
        usage="ask [options] [PICTURE ...] QUESTION",
        description=_DESCRIPTION,
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", nargs="*", metavar="PICTURE, QUESTION", help="files that Pillow can read; a text")
    url = os.environ.get("MULTIMODAL_URL") or DEFAULT_URL
    parser.add_argument("--url", default=url, help="the gateway (now: %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="fail if the served model has another name")
    parser.add_argument("--json", action="store_true", help="print the whole answer as one line of JSON")
    parser.add_argument("--retries", type=int, default=4, metavar="N", help="when the server is busy or away")
    sampling = parser.add_argument_group("sampling", "What is left out has the server's default.")
    for name, kind, told in (
        ("max_tokens", int, "tokens to generate at most"),
        ("temperature", float, "0 is greedy decoding"),
        ("top_k", int, "sample among the k likeliest tokens"),
        ("top_p", float, "sample among the likeliest tokens that make up p"),
        ("seed", int, "makes sampling repeatable"),
    ):
        sampling.add_argument(f"--{name}", type=kind, metavar="N", default=argparse.SUPPRESS, help=told)
    sampling.add_argument(
        "--stop", action="append", metavar="TEXT", default=argparse.SUPPRESS, help="end before this text (repeatable)"
    )
    return parser


def _ask(asked: argparse.Namespace) -> None:
    if [*asked.pictures, asked.question].count("-") > 1:
        raise MultimodalError("Only one picture or the question can be read from standard input.")
    question = _question_from_stdin() if asked.question == "-" else asked.question
    pictures = [sys.stdin.buffer.read() if picture == "-" else picture for picture in asked.pictures]
    given = {name: value for name, value in vars(asked).items() if name in Sampling.__annotations__}
    sampling = Sampling(**given)  # type: ignore[typeddict-item]
    api_key = os.environ.get("MULTIMODAL_API_KEY") or None
    with MultimodalClient(asked.url, api_key=api_key, retry=RetryPolicy(retries=asked.retries)) as client:
        if asked.json:
            completion = client.generate(question, pictures, model=asked.model, **sampling)
            print(json.dumps(dataclasses.asdict(completion, dict_factory=_without_nulls)))
            return
        with client.stream(question, pictures, model=asked.model, **sampling) as chunks:
            try:
                for chunk in chunks:
                    _show(chunk.text)
            finally:
                print(flush=True)


def _question_from_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode().strip()
    except UnicodeDecodeError:
        raise MultimodalError("The question on standard input is not UTF-8 text.") from None


def _show(text: str) -> None:
    print(_harmless(text) if sys.stdout.isatty() else text, end="", flush=True)


def _harmless(text: str) -> str:
    """Without the control characters by which an answer, or a picture through it, could command the terminal."""
    return "".join(c for c in text if unicodedata.category(c) != "Cc" or c in "\n\t")


def _without_nulls(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """As the API has it: a field that was not asked for is not there."""
    return {name: value for name, value in items if value is not None}
