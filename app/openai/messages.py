"""A conversation as OpenAI's clients send it, and as the worker takes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from app.data_url import from_picture_url
from app.errors import bad_request
from app.intake import check_length
from app.openai.parameters import Unsupported
from app.parameters import ASKED, RequestModel
from app.pictures import AskedPicture, Picture, from_base64
from app.schemas import LINKS
from app.settings import Settings
from protocol.messages import ChatMessage, PicturePart, TextPart
from protocol.pictures import FORMATS_IN_WORDS


class TextContent(BaseModel):
    """Text. Special tokens typed into it stay plain characters."""

    model_config = ASKED

    type: Literal["text"]
    text: str = Field(examples=["What is in this image?"])


class ImageUrl(RequestModel):
    """Where a picture is."""

    url: str = Field(
        description=f"The picture itself as a data URL in base64: {FORMATS_IN_WORDS}, told by the content. {LINKS}",
        examples=["data:image/gif;base64,R0lGODlhAQABAIAAAP8AAAAAACwAAAAAAQABAAACAkQBADs="],
    )
    detail: Literal["auto", "low", "high", "original"] = Field(
        default="auto", description="Taken because OpenAI's clients send it; it changes nothing."
    )


class ImageUrlContent(BaseModel):
    """A picture, in OpenAI's form."""

    model_config = ASKED

    type: Literal["image_url"]
    image_url: ImageUrl

    def picture(self, field: str) -> AskedPicture:
        return from_picture_url(self.image_url.url, f"{field}.url")


class ImageContent(BaseModel):
    """A picture, in the form of NeMo's own server."""

    model_config = ASKED

    type: Literal["image"]
    image: str = Field(description=f"The file in base64, or as a data URL. {LINKS}")

    def picture(self, field: str) -> AskedPicture:
        is_url = ":" in self.image  # which base64 does not have
        return from_picture_url(self.image, field) if is_url else Picture(from_base64(self.image, field), field)


ContentPart = Annotated[TextContent | ImageUrlContent | ImageContent, Field(discriminator="type")]
ContentParts = Annotated[list[ContentPart], Field(min_length=1)]


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list):
        return content
    raise ValueError("must be a string or a list of parts.")


class Message(RequestModel):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description='"developer" is "system".')
    content: Annotated[ContentParts, BeforeValidator(_as_parts, json_schema_input_type=str | ContentParts)] = Field(
        description="Text, or parts in the order in which the model should see them. Pictures are the user's.",
        examples=["What is in this image?"],
    )
    name: Annotated[Any, Unsupported()] = None
    refusal: Annotated[Any, Unsupported()] = None
    audio: Annotated[Any, Unsupported()] = None
    annotations: Annotated[Any, Unsupported([])] = None
    function_call: Annotated[Any, Unsupported()] = None
    tool_calls: Annotated[Any, Unsupported([])] = None


def read_conversation(
    messages: list[Message], settings: Settings
) -> tuple[tuple[ChatMessage, ...], list[AskedPicture]]:
    """The turns and their pictures. Raises :class:`ApiError` for what cannot be taken. Not for the event loop."""
    pictures: list[AskedPicture] = []
    turns = tuple(_turn(message, f"messages[{i}]", pictures) for i, message in enumerate(messages))
    parts = (part for turn in turns for part in turn.content)
    check_length(sum(len(part.text) for part in parts if isinstance(part, TextPart)), "messages", settings)
    return turns, pictures


def _turn(message: Message, field: str, pictures: list[AskedPicture]) -> ChatMessage:
    """One turn; its pictures are added to ``pictures``."""
    content: list[TextPart | PicturePart] = []
    for i, part in enumerate(message.content):
        if isinstance(part, TextContent):
            content.append(TextPart(part.text))
            continue
        place = f"{field}.content[{i}].{part.type}"
        if message.role != "user":
            raise bad_request("Pictures can only be in messages of the user.", place)
        content.append(PicturePart(len(pictures)))
        pictures.append(part.picture(place))
    return ChatMessage("system" if message.role == "developer" else message.role, tuple(content))
