"""What the answers of OpenAI's routes have in common."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from app.openai.parameters import OpenAIParameters
from app.openai.schemas import CompletionUsage
from app.reply import Reply
from protocol.messages import Submit, TokenDelta, Usage


class OpenAIReply(Reply):
    """A stream ends with its usage only where that was asked for; then it is null in each event before."""

    def __init__(self, submit: Submit, asked: OpenAIParameters) -> None:
        super().__init__(submit, with_token_ids=asked.return_token_ids)
        self._with_usage = asked.wants_usage

    def counts(self, usage: Usage) -> CompletionUsage:
        return CompletionUsage.of(usage)

    def events(self, item: TokenDelta | Usage) -> Iterator[str]:
        return iter(()) if isinstance(item, Usage) and not self._with_usage else super().events(item)

    def dump_chunk(self, chunk: BaseModel) -> str:
        return chunk.model_dump_json(exclude=None if self._with_usage else {"usage"})
