"""What the engine and a model promise each other, whatever the model's family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from triton_worker.models.decoder.rope import Rotary
from triton_worker.parallel import Ranks

# Called while weights are loaded with (bytes done, bytes in all). The last call has both equal.
Progress = Callable[[int, int], None]


class Attention(Protocol):
    """Attention over the KV cache, which the engine owns; the model only says which layer it is in.

    Tokens of several sequences are concatenated without padding.
    """

    def __call__(self, layer: int, heads: Tensor, rotary: Rotary) -> Tensor:
        """Turn queries and keys, store keys and values in the cache, and attend causally within each sequence.

        heads: [tokens, query heads + 2 * kv_heads, head_dim]: queries, keys, values. Returns [tokens, query heads,
        head_dim].
        """
        ...

    @property
    def sees_pictures(self) -> Tensor | None:
        """Which tokens `to_pictures` has something for: bool [tokens, 1]; None where it has nothing for any."""
        ...

    def to_pictures(self, layer: int, query: Tensor) -> Tensor:
        """Attend to the pictures before each token whose keys and values `picture_keys_values` made.

        layer: counted among those of cross-attention. query: [tokens, query heads, head_dim]. Returns that shape, with
        zeros for tokens that see no picture. Text after a picture sees it until the next one comes; pictures side by
        side are seen together.
        """
        ...


class MultimodalModel(Protocol):
    """A decoder that reads text and pictures. Holds no state of any request; the caller sets `torch.inference_mode`.

    Where it is spread over several ranks, each calls the same methods in the same order with the same arguments, and
    `embed_tokens`, `encode_pictures` and `forward` have meaning on some stages only: see there.
    """

    @property
    def ranks(self) -> Ranks:
        """Those that share the model, and this one's place among them."""
        ...

    @property
    def num_layers(self) -> int:
        """Layers of this rank with keys and values for each token: all but those of cross-attention."""
        ...

    @property
    def num_kv_heads(self) -> int:
        """Key-value heads of this rank."""
        ...

    @property
    def head_dim(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int:
        """Rows of the logits. May exceed the tokenizer's entries: checkpoints pad the vocabulary."""
        ...

    @property
    def cross_span(self) -> int:
        """How many layers' room in the KV cache each cross-attention layer has for pictures, the same on every rank.

        0: the model has no such layers, and a picture's embeddings stand in the places of as many tokens of the prompt.
        Otherwise they stand beside it, and one token says where.
        """
        ...

    @property
    def picture_unit(self) -> int:
        """Side, in pixels, of the square that pictures are made of."""
        ...

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """Height and width of the largest picture, where the model itself has a limit."""
        ...

    def picture_tokens(self, height: int, width: int) -> int:
        """How many embeddings a picture of this size has."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """[tokens] int64 -> [tokens, hidden_size]; zeros on a stage that is not the first."""
        ...

    def encode_pictures(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Encode pictures of any sizes in one batch without padding.

        Each picture is uint8 [height, width, 3] (RGB), height and width multiples of `picture_unit`. Each result is
        [picture_tokens, hidden_size]. Raises ValueError for a picture that the model does not take. Where embeddings
        stand in the places of tokens, the results on a stage that is not the first are zeros that take no memory.
        """
        ...

    def picture_keys_values(self, embeddings: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each cross-attention layer of this rank, in order, the keys and values of one picture's embeddings.

        [n, hidden_size] -> [n, kv_heads, head_dim] each.
        """
        ...

    def prompt_positions(
        self, token_ids: Sequence[int], grids: Sequence[tuple[int, int]], image_token_id: int
    ) -> tuple[Tensor, int]:
        """Positions of a prompt's tokens for `forward`, int64 [3, tokens] on the CPU, and that of the token after them.

        grids: rows and columns of units of each picture, in order. Generated tokens count up from the second result, in
        all three rows. Raises ValueError when the prompt's image tokens are not those that the grids ask for.
        """
        ...

    def forward(self, embeddings: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """[tokens, hidden_size], [3, tokens] int64 -> [tokens, hidden_size] after the final norm.

        A stage that is not the first goes on from what the one before sent, not from `embeddings`; one that is not the
        last sends its result to the next, and returns it without the final norm.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden_size] -> [n, vocab_size]. Only the last stage has them, on each of its ranks."""
        ...
