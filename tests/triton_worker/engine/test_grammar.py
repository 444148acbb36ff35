"""Answers within grammars, by the real engine on the fixture and on the demo checkpoint."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch

from protocol.messages import ChatMessage, FinishReason, Grammar, JsonGrammar, RegexGrammar, SamplingParameters, Submit
from protocol.messages import TextPart as Text
from tests.triton_worker.device import DEVICE
from tests.triton_worker.models.reference import NEMO_FIXTURE
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine
from triton_worker.engine.grammar import GrammarCompiler, GrammarError, GrammarMatcher
from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import Generate, NewToken
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.qwen_vl.prompts import prompt_format
from triton_worker.models.registry import load_model
from triton_worker.processing.pictures import PictureLimits
from triton_worker.processing.processor import Processor

DEMO = Path(__file__).parents[3] / "examples" / "demo_model" / "checkpoint"
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "größer"]},
        "name": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": -3, "maximum": 250},
        "seen": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["shape", "count", "seen"],
    "additionalProperties": False,
}
SENTENCE = r"[A-Z][a-zé]{2,8}( \d{1,3}){1,3}(!|\?)?"


class Deployment:
    """A checkpoint's processor, tokenizer and engine."""

    def __init__(self, checkpoint: Path, blocks: int | None = None) -> None:
        opened = open_checkpoint(checkpoint)
        self.processor = Processor(opened, prompt_format(opened), PictureLimits())
        self.tokenizer = self.processor.tokenizer
        self.model: MultimodalModel = load_model(opened, torch.float32, DEVICE)
        self.grammars = GrammarCompiler(
            self.tokenizer.to_json(), self.tokenizer.size, self.tokenizer.end_token_ids, threads=2
        )
        self.context_length = opened.seq_length

    def engine(self, **limits: int) -> Engine:
        return Engine(
            self.model,
            self.tokenizer.image_token_id,
            self.context_length,
            EngineLimits(**{"kv_cache_bytes": 2**27, **limits}),
            self.grammars,
        )

    def request(self, name: str, grammar: Grammar | None, text: str = "What is it?", **sampling: object) -> Generate:
        parameters = SamplingParameters(grammar=grammar, **{"max_tokens": 120, **sampling})  # type: ignore[arg-type]
        message = ChatMessage("user", (Text(text),))
        submit = Submit(request_id="r", model="m", messages=(message,), sampling=parameters)
        return self.processor.prepare(submit, name, self.context_length)

    def answers(self, engine: Engine, *requests: Generate) -> dict[str, tuple[str, FinishReason | None]]:
        """The text of each request and why it ended."""
        for request in requests:
            engine.add(request)
        tokens: dict[str, list[NewToken]] = {}
        while engine.has_work:
            for token in engine.step().tokens:
                tokens.setdefault(token.request_id, []).append(token)
        return {
            name: (self.tokenizer.decode([t.token_id for t in of]), of[-1].finish_reason) for name, of in tokens.items()
        }


@pytest.fixture(scope="module")
def tiny() -> Deployment:
    return Deployment(NEMO_FIXTURE)


@pytest.fixture(scope="module")
def demo() -> Deployment:
    return Deployment(DEMO)


@pytest.mark.parametrize("checkpoint", ["tiny", "demo"])
def test_every_answer_fits_whatever_the_temperature(checkpoint: str, request: pytest.FixtureRequest) -> None:
    deployment: Deployment = request.getfixturevalue(checkpoint)
    temperatures = (0.0, 2.0, 2.0)
    crowd = [
        deployment.request(f"{kind} {seed}", grammar, temperature=temperature, seed=seed, presence_penalty=0.5)
        for kind, grammar in (("json", JsonGrammar(json.dumps(SCHEMA))), ("regex", RegexGrammar(SENTENCE)))
        for seed, temperature in enumerate(temperatures)
    ]
    free = deployment.request("free", None, temperature=0, max_tokens=8)
    answers = deployment.answers(deployment.engine(), *crowd, free)
    for seed in range(len(temperatures)):
        text, reason = answers[f"json {seed}"]
        assert reason is FinishReason.STOP, text
        jsonschema.validate(json.loads(text), SCHEMA)
        text, reason = answers[f"regex {seed}"]
        assert reason is FinishReason.STOP, text
        assert re.fullmatch(SENTENCE, text)
    assert answers["free"] == deployment.answers(deployment.engine(), free)["free"]


def test_any_object_is_an_object(tiny: Deployment) -> None:
    requests = [tiny.request(str(seed), JsonGrammar(), temperature=1.5, seed=seed) for seed in range(4)]
    answers = tiny.answers(tiny.engine(), *requests)
    complete = [text for text, reason in answers.values() if reason is FinishReason.STOP]
    assert complete
    assert all(isinstance(json.loads(text), dict) for text in complete)
    assert all(text.lstrip().startswith("{") for text, _ in answers.values())


def test_preemption_changes_no_constrained_answer(tiny: Deployment) -> None:
    grammar = RegexGrammar(r"[a-z]{20,40}\.")
    requests = [tiny.request(str(seed), grammar, temperature=1.5, seed=seed, max_tokens=50) for seed in range(3)]
    roomy = tiny.answers(tiny.engine(), *requests)
    narrow = tiny.engine(context_length=96, kv_cache_bytes=6 * _block_bytes(tiny))
    assert tiny.answers(narrow, *requests) == roomy
    assert narrow.status.counters.preemptions > 0


def test_an_answer_ends_with_its_grammar_or_may_go_on(tiny: Deployment) -> None:
    answers = tiny.answers(
        tiny.engine(),
        tiny.request("complete", RegexGrammar("ab"), temperature=0),
        tiny.request("ignores the end", RegexGrammar("(ab)?"), temperature=2.0, ignore_eos=True),
        tiny.request("too short", RegexGrammar("(ab){9}"), temperature=0, max_tokens=3),
        tiny.request("ends", RegexGrammar("a{0,200}"), logit_bias=dict.fromkeys(tiny.tokenizer.end_token_ids, 90.0)),
    )
    assert answers["complete"] == ("ab", FinishReason.STOP)
    assert answers["ignores the end"][0] in ("ab", "")
    assert answers["ignores the end"][1] is FinishReason.STOP
    assert answers["too short"][1] is FinishReason.LENGTH
    assert answers["ends"] == ("", FinishReason.STOP)


def test_the_end_is_allowed_exactly_where_the_grammar_is_complete(tiny: Deployment) -> None:
    matcher = tiny.grammars.matcher(RegexGrammar("ab?"))
    [a], [b] = (tiny.tokenizer.encode_template(letter, "") for letter in "ab")
    ends = tiny.tokenizer.end_token_ids
    assert _allowed(matcher) == {t for t in _allowed(matcher) if tiny.tokenizer.token_bytes(t) in (b"a", b"ab")}
    matcher.advance(a)
    assert _allowed(matcher) == {b} | ends
    assert not matcher.finished
    matcher.advance(b)
    assert matcher.finished


def test_rows_that_pad_the_vocabulary_are_never_chosen(tiny: Deployment) -> None:
    size = tiny.tokenizer.size
    assert tiny.model.vocab_size > size
    requests = [tiny.request(str(seed), None, temperature=2.0, seed=seed, max_tokens=20) for seed in range(4)]
    engine = tiny.engine()
    for request in requests:
        engine.add(request)
    chosen = [token.token_id for _ in range(20) for token in engine.step().tokens]
    assert len(chosen) > 30
    assert max(chosen) < size


def test_a_request_whose_grammar_breaks_fails_alone(tiny: Deployment) -> None:
    engine = tiny.engine(overlap_steps=False)
    engine.add(tiny.request("broken", RegexGrammar("abcd"), temperature=0))
    [broken] = engine._scheduler._waiting
    assert broken.grammar is not None
    broken.grammar.advance(0)  # as if the library had let through what it does not take
    engine.add(tiny.request("sound", RegexGrammar("abcd"), temperature=0))
    assert engine.step().failed == ("broken",)
    assert tiny.answers(engine)["sound"] == ("abcd", FinishReason.STOP)  # it had waited for the other's equal prompt
    assert engine.status.free_blocks == engine.status.total_blocks


def test_an_expensive_grammar_on_the_way_stops_nobody(tiny: Deployment) -> None:
    costly = RegexGrammar(r"(.*[a-m].{12}){50}")  # its automaton grows with every character
    engine = tiny.engine()
    engine.add(tiny.request("costly", costly, temperature=2.0, max_tokens=16))
    engine.add(tiny.request("sound", RegexGrammar("[a-z]{8}"), temperature=2.0))
    ended: dict[str, object] = {}
    while engine.has_work:
        output = engine.step()
        ended |= dict.fromkeys(output.failed, "failed")
        ended |= {t.request_id: t.finish_reason for t in output.tokens if t.finish_reason}
    assert ended["sound"] is FinishReason.STOP
    assert ended["costly"] in ("failed", FinishReason.LENGTH)


def test_a_grammar_that_does_not_compile_is_an_error_of_its_request(tiny: Deployment) -> None:
    for grammar in (RegexGrammar("("), JsonGrammar("{"), JsonGrammar('{"type": "potato"}')):
        with pytest.raises(GrammarError):
            tiny.grammars.matcher(grammar)


def _allowed(matcher: GrammarMatcher) -> set[int]:
    [mask] = GrammarMatcher.masks([matcher])
    return {word * 32 + bit for word, bits in enumerate(mask.tolist()) for bit in range(32) if bits >> bit & 1}


def _block_bytes(deployment: Deployment) -> int:
    model = deployment.model
    return KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
