from collections.abc import Sequence

import pytest
from torch import Tensor

from tests.triton_worker.models.conftest import one_thread as one_thread
from triton_worker.models.interface import MultimodalModel


@pytest.fixture
def encoded(model: MultimodalModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each run of the vision tower of the module's model was given."""
    encode = model.encode_pictures
    calls: list[int] = []

    def counted(pictures: Sequence[Tensor]) -> list[Tensor]:
        if any(picture.any() for picture in pictures):  # those by which a GPU's memory is measured are black
            calls.append(len(pictures))
        return encode(pictures)

    monkeypatch.setattr(model, "encode_pictures", counted)
    return calls
