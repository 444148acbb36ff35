"""``python -m triton_worker.engine.grammar_probe``: tries one grammar out, where it can do no harm.

The grammar is read from standard input, as JSON. What is wrong with it, in the library's words, goes to standard
output: nothing where it is sound. A schema of a few bytes may ask for gigabytes, and a Rust library that gets none
ends its process: so this one is bounded in memory and time, and its end by SIGABRT, SIGSEGV or SIGXCPU says so.
"""

from __future__ import annotations

import os
import random
import resource
import sys

import msgspec
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from protocol.messages import Grammar
from triton_worker.engine.grammar_source import library_grammar, limits

MEMORY_BYTES = 2**29
CPU_SECONDS = 1
UNSATISFIABLE = "Unsatisfiable"
"""Begins what llguidance says of a schema that no value fits."""
_WALK_BYTES = 64


class _Bytes:
    """A tokenizer of one token a byte, and one that ends the text."""

    tokens = (*(bytes([value]) for value in range(256)), b"<end>")
    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def fault(grammar: Grammar) -> str:
    """What is wrong with the grammar; empty where it is sound. Compiles it and follows it for a few bytes.

    Some cost shows only on the way: a repeated group is unfolded when it is reached.
    """
    try:
        matcher = LLMatcher(
            LLTokenizer(TokenizerWrapper(_Bytes())), library_grammar(grammar), log_level=0, limits=limits()
        )
    except ValueError as error:
        return str(error) or "invalid"
    choose = random.Random(0)
    for place in range(_WALK_BYTES):
        if matcher.is_error():
            break
        bits = 0 if matcher.is_stopped() else int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [value for value in range(256) if bits >> value & 1]
        if not allowed:
            return matcher.get_error() or ("" if place else f"{UNSATISFIABLE}: only the empty text fits")
        matcher.consume_token(choose.choice(allowed))
    return matcher.get_error()


def main() -> None:
    """Probe the grammar on standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))  # SIGXCPU first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grammar: Grammar = msgspec.json.decode(sys.stdin.buffer.read(), type=Grammar)
    try:
        sys.stdout.write(fault(grammar))
    except BaseException:  # memory, or a panic of the library, which is no Exception
        os.abort()


if __name__ == "__main__":
    main()
