"""Values and errors: whatever a chain is asked, it answers the same plain and compiled."""

import asyncio


async def collected(iterator):
    return [item async for item in iterator]


def in_order(pairs):
    return sorted(pairs, key=lambda pair: pair[0])


def test_invoke(both):
    for number in range(len(both.plain.inputs)):
        both.agree(lambda side, n=number: side.runnable.invoke(side.inputs[n]))
        both.did_the_same()


def test_ainvoke(both):
    async def each(side):
        return await asyncio.gather(*map(side.runnable.ainvoke, side.inputs), return_exceptions=True)

    both.agree(lambda side: asyncio.run(each(side)))


def test_batch_raises_the_first_error(both):
    both.agree(lambda side: side.runnable.batch(list(side.inputs)))


def test_batch_with_errors_in_place(both):
    both.agree(lambda side: side.runnable.batch(list(side.inputs), return_exceptions=True))


def test_abatch(both):
    async def each(side):
        in_place = await side.runnable.abatch(list(side.inputs), return_exceptions=True)
        return in_place, await side.runnable.abatch(list(side.inputs))

    both.agree(lambda side: asyncio.run(each(side)))


def test_batch_as_completed(both):
    both.agree(lambda side: in_order(side.runnable.batch_as_completed(list(side.inputs), return_exceptions=True)))


def test_abatch_as_completed(both):
    def run(side):
        return asyncio.run(collected(side.runnable.abatch_as_completed(list(side.inputs), return_exceptions=True)))

    both.agree(lambda side: in_order(run(side)))
