"""Refusing grammars that cannot be followed, before the engine meets them."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys

import msgspec

from protocol.messages import ErrorCode, Grammar, JsonGrammar
from triton_worker.engine.grammar_probe import UNSATISFIABLE
from triton_worker.processing.refusal import RequestRefused

LONGEST_GRAMMAR = 65_536
"""Characters of a schema or a regular expression."""

_PROBE_SECONDS = 20.0  # a busy machine's: the probe itself ends after a second of computing
_REMEMBERED = 256
_TOO_COMPLEX = re.compile(
    r"too (big|many|complex|large)|fuel|max is|recursion limit|exceeds|out of range|too many digits"
)
_UNKNOWN_KEYWORDS = "Unimplemented keys: "
_LIMITS_MET = (signal.SIGABRT, signal.SIGSEGV, signal.SIGXCPU)
_SOUND = ""
_KILLED = "too complex"


def check_grammar(grammar: Grammar) -> None:
    """Try a grammar out, in a process of its own the first time that it is seen.

    Raises:
        RequestRefused: it is invalid, asks for what is not supported, fits nothing, or is too complex.
    """
    if grammar == JsonGrammar():
        return
    is_json = isinstance(grammar, JsonGrammar)
    text = grammar.schema or "" if isinstance(grammar, JsonGrammar) else grammar.pattern
    name, param = ("JSON schema", "response_format") if is_json else ("regular expression", "guided_regex")
    if len(text) > LONGEST_GRAMMAR:
        message = f"The {name} has {len(text)} characters; up to {LONGEST_GRAMMAR} are taken."
        raise RequestRefused(ErrorCode.INVALID_REQUEST, message, param)
    try:
        fault = _fault(grammar)
    except subprocess.TimeoutExpired:
        message = f"The {name} could not be checked in time. Please try again."
        raise RequestRefused(ErrorCode.UNAVAILABLE, message, param) from None
    if fault != _SOUND:
        raise RequestRefused(ErrorCode.INVALID_REQUEST, f"The {name} {_sentence_end(fault, is_json)}", param)


@functools.lru_cache(_REMEMBERED)
def _fault(grammar: Grammar) -> str:
    """What the probe says, or that it came to its limits.

    Raises:
        RuntimeError: the probe itself is broken, or something else ended it; that is not remembered.
    """
    command = [sys.executable, "-m", "triton_worker.engine.grammar_probe"]
    message = msgspec.json.encode(grammar)
    probe = subprocess.run(command, input=message, capture_output=True, timeout=_PROBE_SECONDS, check=False)
    if -probe.returncode in _LIMITS_MET:
        return _KILLED
    if probe.returncode != 0:
        raise RuntimeError(f"The grammar probe ended with {probe.returncode}: {probe.stderr[-2000:]!r}")
    return probe.stdout.decode("utf-8", "replace")


def _sentence_end(fault: str, is_json: bool) -> str:
    """The library's complaint in words of ours."""
    if is_json and fault.startswith(_UNKNOWN_KEYWORDS):
        return f"uses keywords that are not supported: {', '.join(re.findall('[a-zA-Z]+', fault)[2:])}."
    if _TOO_COMPLEX.search(fault):
        return "is too large or too complex."
    if fault.startswith(UNSATISFIABLE) or "NoExtension" in fault:
        return "is such that no answer can fit it."
    if is_json:
        return "is not valid, or uses something that is not supported, such as a oneOf whose options overlap."
    return "is not valid, or uses something that is not supported, such as look-around, \\b or back-references."
