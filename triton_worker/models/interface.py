"""What the engine and a model promise each other, whatever the model's family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from triton_worker.models.decoder.rope import Rotary
from triton_worker.parallel import Ranks

# Called while weights are loaded with (bytes done, bytes in all). The last call has both equal.
Progress = Callable[[int, int], None]


class Attention(Protocol):
    """Causal self-attention over the KV cache, which the engine owns; the model only says which layer it is in."""

    def __call__(self, layer: int, heads: Tensor, rotary: Rotary) -> Tensor:
        """Turn queries and keys, store keys and values in the cache, and attend causally within each sequence.

        heads: [tokens, query heads + 2 * kv_heads, head_dim]: queries, keys, values. Tokens of several sequences are
        concatenated without padding. Returns [tokens, query heads, head_dim].
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
        """Layers of this rank."""
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
    def picture_unit(self) -> int:
        """Side, in pixels, of the square that one picture embedding stands for."""
        ...

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """Height and width of every picture, where the model takes only one size."""
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

        Each picture is uint8 [height, width, 3] (RGB), height and width multiples of `picture_unit`, or `picture_size`
        where there is one. Each result is [rows * columns of units, hidden_size], row after row. Raises ValueError for
        any other picture. On a stage that is not the first the results are zeros that take no memory.
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
