"""How a grammar of the protocol is said to llguidance, and the limits within which it is compiled.

Small on purpose: the probe, a process of its own for each grammar, imports nothing else of ours.
"""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits

from protocol.messages import Grammar, JsonGrammar, RegexGrammar

_ANY_OBJECT = '{"type": "object"}'

# On one line, as models mostly write it. Where any blanks are allowed, a model may go on with them until its tokens are
# used up. The separators are regular expressions.
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def limits() -> LLParserLimits:
    """What compiling and one step may cost; a state of the lexer takes one to two kilobytes."""
    return LLParserLimits(max_lexer_states=20_000, max_grammar_size=100_000, verbose_errors=False)


def library_grammar(grammar: Grammar) -> str:
    """The grammar in llguidance's own form; compiling it tells whether it is valid.

    Raises:
        ValueError: a schema is no JSON.
    """
    match grammar:
        case JsonGrammar(schema):
            text = _ANY_OBJECT if schema is None else schema
            # Said last, so that a schema cannot ask for keywords to be ignored.
            strict = {**_ONE_LINE, "lenient": False, "coerce_one_of": False}
            return LLMatcher.grammar_from_json_schema(text, overrides=strict)  # type: ignore[arg-type]
        case RegexGrammar(pattern):
            return LLMatcher.grammar_from_regex(pattern)
