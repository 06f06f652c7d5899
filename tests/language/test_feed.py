"""Callbacks as iterators."""

from __future__ import annotations

import asyncio

from sgl_core.language.feed import aiterate, iterate


def subscribe(put) -> None:
    for piece in ("a", "", "b", None):
        put(piece)


def test_pieces_come_in_order_without_the_empty_ones_until_none() -> None:
    assert list(iterate(subscribe)) == ["a", "b"]


def test_async_iteration_does_the_same() -> None:
    async def main() -> list[str]:
        return [piece async for piece in aiterate(subscribe)]

    assert asyncio.run(main()) == ["a", "b"]
