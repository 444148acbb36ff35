"""The command ``query_inframework``: one prompt about pictures, to a model in Triton, as in NeMo Export-Deploy."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from clients.local_template import render
from clients.multimodal import NemoQueryMultimodalPytorch, triton_address
from clients.rest.errors import MultimodalError
from clients.sources import picture_file
from clients.triton_stream import stream_answer
from protocol.messages import ChatMessage, PicturePart, SamplingParameters, Submit, TextPart


def main(argv: Sequence[str] | None = None) -> None:
    """Print the answer; exits with 1 and a sentence when there is none."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.stream:
            _print_stream(arguments)
        else:
            outputs = _query(arguments)
            print(_as_json(outputs) if arguments.json else outputs)
    except MultimodalError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="query_inframework",
        description="Ask a deployed model about pictures, over Triton's HTTP port.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("-u", "--url", default="0.0.0.0", help="Triton's host, or host:port. Default: 0.0.0.0, port 8000.")
    add("-mn", "--model_name", metavar="NAME", required=True, help="Name of the model in Triton.")
    add(
        "-pn",
        "--processor_name",
        metavar="NAME",
        default="Qwen/Qwen2.5-VL-7B-Instruct",
        help="Local directory with the chat template to use. Anything else stands for the served model's own "
        "template; nothing is downloaded. Default: Qwen/Qwen2.5-VL-7B-Instruct.",
    )
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="The prompt.")
    prompt.add_argument("-pf", "--prompt_file", metavar="FILE", type=Path, help="File to read the prompt from.")
    add(
        "-i",
        "--image",
        metavar="PICTURE",
        nargs="+",
        action="extend",
        default=[],
        help="Path or URL of a picture; several may follow. Without one the prompt is asked alone.",
    )
    add("-mol", "--max_output_len", metavar="N", type=int, default=50, help="Most tokens to generate. Default: 50.")
    add("-mbs", "--max_batch_size", metavar="N", type=int, default=4, help="Most prompts computed at once. Default: 4.")
    add(
        "-tk",
        "--top_k",
        metavar="K",
        type=int,
        default=1,
        help="Sample among so many; 1 is greedy. Default: 1.",
    )
    add("-tpp", "--top_p", metavar="P", type=float, default=0.0, help="Nucleus sampling; 0 is off. Default: 0.0.")
    add("-t", "--temperature", metavar="T", type=float, default=1.0, help="Sampling temperature. Default: 1.0.")
    add("-rs", "--random_seed", metavar="SEED", type=int, help="Makes sampling repeatable.")
    add(
        "-it",
        "--init_timeout",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="Wait so long for Triton and the model. Default: 60.0.",
    )
    printing = parser.add_mutually_exclusive_group()
    printing.add_argument("--json", action="store_true", help="Print JSON.")
    printing.add_argument(
        "--stream",
        action="store_true",
        help="Print the answer's text as it is generated. This goes over Triton's gRPC port, as decoupled models do.",
    )
    add("--triton_grpc_port", metavar="PORT", type=int, default=8001, help="For --stream. Default: 8001.")
    return parser


def _query(arguments: argparse.Namespace) -> dict[str, Any]:
    messages = _messages(_prompt(arguments), len(arguments.image))
    directory = Path(arguments.processor_name)
    local = directory.is_dir()
    return NemoQueryMultimodalPytorch(arguments.url, arguments.model_name).query_multimodal(
        prompts=[render(directory, messages) if local else json.dumps(messages)],
        images=[arguments.image],
        max_length=arguments.max_output_len,
        max_batch_size=arguments.max_batch_size,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        temperature=arguments.temperature,
        random_seed=arguments.random_seed,
        apply_chat_template=not local,
        init_timeout=arguments.init_timeout,
    )


def _print_stream(arguments: argparse.Namespace) -> None:
    http_address, _ = triton_address(arguments.url)
    address = f"{http_address.rpartition(':')[0]}:{arguments.triton_grpc_port}"
    with closing(stream_answer(address, _submit(arguments), arguments.init_timeout)) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


def _submit(arguments: argparse.Namespace) -> Submit:
    """The request in the gateway's words, in which ``top_p`` 1 is what 0 is on the seed's wire: no limit."""
    directory = Path(arguments.processor_name)
    text = _prompt(arguments)
    places = tuple(map(PicturePart, range(len(arguments.image))))
    asked: dict[str, Any] = {"messages": (ChatMessage("user", (*places, TextPart(text))),)}
    if directory.is_dir():
        asked = {"rendered_prompt": render(directory, _messages(text, len(places)))}
    sampling = SamplingParameters(
        max_tokens=arguments.max_output_len,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p or 1.0,
        seed=arguments.random_seed,
    )
    return Submit(
        request_id=f"query-{secrets.token_hex(8)}",
        model=arguments.model_name,
        **asked,
        pictures=tuple(map(picture_file, arguments.image)),
        sampling=sampling,
    )


def _prompt(arguments: argparse.Namespace) -> str:
    return str(arguments.prompt) if arguments.prompt_file is None else _read(arguments.prompt_file)


def _messages(text: str, pictures: int) -> list[dict[str, Any]]:
    """One turn of the user, as chat templates take it: the pictures, then the text."""
    return [
        {"role": "user", "content": [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]}
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MultimodalError(f"The prompt file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise MultimodalError(f"The prompt file {path} is not UTF-8 text.") from None


def _as_json(outputs: dict[str, Any]) -> str:
    choices = [{"text": choice["text"].tolist()} for choice in outputs["choices"]]
    return json.dumps({**outputs, "choices": choices}, ensure_ascii=False)


if __name__ == "__main__":
    main()
