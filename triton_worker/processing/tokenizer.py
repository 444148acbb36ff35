"""The checkpoint's tokenizer, with user text and special tokens kept apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as BackendTokenizer

from triton_worker.checkpoint import CheckpointError
from triton_worker.checkpoint.checkpoint import read_json_object


@dataclass(frozen=True)
class TokenizerFormat:
    """What a family expects of its tokenizer.

    picture_token: the special token in whose places a picture's embeddings come.
    config_tokens: the tokens around pictures, by the names of their ids in Hugging Face's config.json.
    end_tokens: those that end an answer, where the files do not say.
    split: the pattern by which text is split before byte-level BPE, for checkpoints without a tokenizer.json; a family
    without one needs that file.
    """

    picture_token: str
    config_tokens: Mapping[str, str]
    end_tokens: tuple[str, ...]
    split: str | None = None


# Byte-level BPE writes a byte that is no visible Latin-1 character as the next free one from 256 (GPT-2's table).
_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_INVISIBLE = [byte for byte in range(256) if byte not in set(_VISIBLE)]
_BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {chr(256 + at): byte for at, byte in enumerate(_INVISIBLE)}


# Sentencepiece's: a token that is one byte, and the character that stands for a space.
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


class _AddedToken(msgspec.Struct):
    content: Annotated[str, msgspec.Meta(min_length=1)]
    id: Annotated[int, msgspec.Meta(ge=0)]


class Tokenizer:
    """Text to token ids and back.

    Raises:
        CheckpointError: the directory holds no tokenizer, or none that fits the family.
    """

    def __init__(self, directory: Path, form: TokenizerFormat) -> None:
        settings = (
            read_json_object(directory / "tokenizer_config.json")
            if (directory / "tokenizer_config.json").exists()
            else {}
        )
        self._form = form
        document = _tokenizer_document(directory, settings, form.split)
        try:
            added = msgspec.convert(document.get("added_tokens") or [], list[_AddedToken])
        except msgspec.ValidationError as error:
            raise CheckpointError(
                f"{directory}: the tokenizer's added tokens need a content and an id each."
            ) from error
        self._special_ids = {token.content: token.id for token in added}
        if form.picture_token not in self._special_ids:
            raise CheckpointError(
                f"{directory}: the tokenizer has no {form.picture_token} token, which stands for a picture in prompts."
            )
        self._decoder = _backend(document, directory)
        # Without its added tokens the tokenizer cannot make one, whatever the text.
        plain = {**document, "added_tokens": [], "post_processor": None}
        self._text_encoder = _backend(plain, directory)
        self._continuing_encoder = _backend(_without_first_space(plain), directory)
        # What the tokenizer puts before a text of its own accord, such as Llama's <s>.
        self._beginning = self._decoder.encode("", add_special_tokens=True).ids[:1]
        longest_first = sorted(self._special_ids, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self.image_token_id = self._special_ids[form.picture_token]
        vocabulary = self._decoder.get_vocab()
        self.size = max(vocabulary.values()) + 1
        """Token ids are below it."""
        # A token is written with at least one character for each that it stands for.
        self.longest_token = max(map(len, vocabulary))
        self._byte_level = "ByteLevel" in json.dumps(document.get("decoder"))
        self.end_token_ids = self._end_token_ids(directory, settings)

    @property
    def special_tokens(self) -> Iterable[str]:
        """The added tokens' texts."""
        return self._special_ids.keys()

    @property
    def picture_token_ids(self) -> dict[str, int]:
        """The ids of those tokens around pictures that this tokenizer has, by their names in Hugging Face's config."""
        stored = self._form.config_tokens.items()
        return {name: self._special_ids[token] for name, token in stored if token in self._special_ids}

    def encode_template(self, text: str, literal_mark: str) -> list[int]:
        """Token ids of a rendered template: special tokens in it are special, and it begins as the tokenizer begins.

        ``literal_mark`` is a character put into user text to break special tokens up; it is taken out before encoding.
        """
        token_ids: list[int] = []
        for index, piece in enumerate(self._special_pattern.split(text)):
            if index % 2:
                token_ids.append(self._special_ids[piece])
            elif piece:
                # As a batch, because only that lets other threads run meanwhile.
                text = piece.replace(literal_mark, "")
                encoder = self._continuing_encoder if index else self._text_encoder
                token_ids += encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids
        begun = not token_ids or token_ids[:1] == self._beginning
        return token_ids if begun else self._beginning + token_ids

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids; special tokens and rows that pad the vocabulary have none."""
        return self._decoder.decode(token_ids, skip_special_tokens=True)

    def token_bytes(self, token_id: int) -> bytes:
        """A token's own bytes, which may be part of a character; of a special token, its name's."""
        token = self._decoder.id_to_token(token_id) or ""
        if token in self._special_ids:
            return token.encode()
        if self._byte_level:
            return bytes(_BYTE_OF[character] for character in token if character in _BYTE_OF)
        byte = _BYTE_TOKEN.fullmatch(token)
        return token.replace(_SPACE, " ").encode() if byte is None else bytes([int(byte[1], 16)])

    def to_json(self) -> str:
        """The tokenizer as the content of a ``tokenizer.json``."""
        return self._decoder.to_str()

    def _end_token_ids(self, directory: Path, settings: dict[str, Any]) -> frozenset[int]:
        """Tokens that end an answer: those of generation_config.json, or else the tokenizer's own."""
        generation = directory / "generation_config.json"
        if generation.exists() and (stored := read_json_object(generation).get("eos_token_id")) is not None:
            try:
                return frozenset(msgspec.convert(stored if isinstance(stored, list) else [stored], list[int]))
            except msgspec.ValidationError as error:
                raise CheckpointError(f"{generation}: eos_token_id is a token id or a list of them.") from error
        eos = settings.get("eos_token")
        names = (*self._form.end_tokens, eos.get("content") if isinstance(eos, dict) else eos)
        ends = frozenset(self._special_ids[name] for name in names if name in self._special_ids)
        if not ends:
            raise CheckpointError(f"{directory}: the tokenizer names no end-of-sequence token.")
        return ends


def _without_first_space(document: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer for text in the middle of a prompt.

    SentencePiece's way of beginning a text with a space, in the form that holds for the whole text and not for each
    part between special tokens (`prepend_scheme` first).
    """
    split = document.get("pre_tokenizer") or {}
    if split.get("type") != "Metaspace" or split.get("prepend_scheme") != "first":
        return document
    return {**document, "pre_tokenizer": {**split, "prepend_scheme": "never"}}


def _tokenizer_document(directory: Path, settings: dict[str, Any], split: str | None) -> dict[str, Any]:
    """The content of tokenizer.json, made from vocab.json and merges.txt where it is missing."""
    if (directory / "tokenizer.json").exists():
        return read_json_object(directory / "tokenizer.json")
    if split is None:
        raise CheckpointError(f"{directory}: tokenizer.json is missing, which this family's tokenizer needs.")
    for name in ("vocab.json", "merges.txt"):
        if not (directory / name).exists():
            raise CheckpointError(
                f"{directory}: neither tokenizer.json nor {name} is there; the tokenizer's files are needed."
            )
    try:
        model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{directory}: vocab.json and merges.txt hold no byte-level BPE vocabulary.") from error
    backend = BackendTokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    document: dict[str, Any] = json.loads(backend.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = settings.get("added_tokens_decoder") or {}
    document["added_tokens"] = [{**flags, **token, "id": int(token_id)} for token_id, token in added.items()]
    return document


def _backend(document: dict[str, Any], directory: Path) -> BackendTokenizer:
    try:
        return BackendTokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{directory}: the tokenizer's files cannot be read as a Hugging Face tokenizer."
        ) from error
