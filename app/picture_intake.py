"""From pictures as a request names them to files that were looked at."""

from __future__ import annotations

from collections.abc import Sequence

from app.disconnect import all_of
from app.errors import ApiError
from app.large import in_thread_if
from app.media.fetcher import Allowance, MediaFetcher, not_allowed
from app.pictures import AskedPicture, LinkedPicture, Picture, check_count, check_pictures
from app.settings import Settings

_LARGE_BYTES = 2 * 1024
"""To open a PNG, Pillow inflates the texts in it, up to a thousand times what they take there."""


class PictureIntake:
    def __init__(self, settings: Settings, fetcher: MediaFetcher | None) -> None:
        """Without a fetcher, picture URLs are off."""
        self._settings = settings
        self._fetcher = fetcher

    async def take(self, asked: Sequence[AskedPicture]) -> list[Picture]:
        """The pictures of a prompt, fetched and checked. Raises :class:`ApiError` for one that cannot be taken."""
        [taken] = await self.take_each([asked])
        if isinstance(taken, ApiError):
            raise taken
        return taken

    async def take_each(self, prompts: Sequence[Sequence[AskedPicture]]) -> list[list[Picture] | ApiError]:
        """The same for several prompts of one request; pictures of one that cannot be taken do not touch the others."""
        allowance = Allowance(self._settings.max_body_bytes)
        return await all_of(self._taken_or_error(asked, allowance) for asked in prompts)

    async def _taken_or_error(self, asked: Sequence[AskedPicture], allowance: Allowance) -> list[Picture] | ApiError:
        if not asked:
            return []
        try:
            check_count(asked, self._settings)
            pictures = await self._all_fetched(asked, allowance)
            size = sum(len(picture.data) for picture in pictures)
            await in_thread_if(size >= _LARGE_BYTES, check_pictures, pictures, self._settings)
        except ApiError as error:
            return error
        return pictures

    async def _all_fetched(self, asked: Sequence[AskedPicture], allowance: Allowance) -> list[Picture]:
        links = (picture for picture in asked if isinstance(picture, LinkedPicture))
        fetched = iter(await all_of(self._fetched(link, allowance) for link in links))
        return [picture if isinstance(picture, Picture) else next(fetched) for picture in asked]

    async def _fetched(self, picture: LinkedPicture, allowance: Allowance) -> Picture:
        if self._fetcher is None:
            raise not_allowed("Picture URLs are off on this server: send the picture itself.", picture.field)
        return Picture(await self._fetcher.fetch(picture, allowance), picture.field)
