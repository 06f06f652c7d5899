"""Print text while it is generated: a variable of a program, the whole of it, and two programs side by side.

    python examples/streaming.py
    sgl run examples/streaming.py --arg animal="a crow"

run(stream=True) returns at once. text_iter(name) yields a variable piece by piece, text_iter() the whole text; the async ones
do the same without blocking, so one event loop follows as many programs as there are.
"""

import asyncio

import sgl_native as sgl


@sgl.function
def streaming(s, animal="an old owl"):
    s += sgl.user("Write a title for a story about " + animal + ".")
    s += sgl.assistant(sgl.gen("title", max_tokens=16, temperature=0, stop="\n"))
    s += sgl.user("Write its first sentence.")
    s += sgl.assistant(sgl.gen("opening", max_tokens=32, temperature=0))


async def follow(animal: str, column: str, engine: sgl.Engine) -> int:
    """Print each piece of one program's opening with its column in front; how many there were."""
    num_pieces = 0
    async for piece in streaming.run(animal=animal, backend=engine, stream=True).text_async_iter("opening"):
        print(f"{column}{piece!r}")
        num_pieces += 1
    return num_pieces


async def follow_two(engine: sgl.Engine) -> None:
    left, right = await asyncio.gather(follow("a red fox", "", engine), follow("a whale", " " * 30, engine))
    print(f"\n{left} pieces of the fox, {right} of the whale")


def main() -> None:
    with sgl.Engine() as engine:
        state = streaming.run(backend=engine, stream=True)
        for name in ("title", "opening"):
            print(f"[{name}] ", end="")
            for piece in state.text_iter(name):
                print(piece, end="", flush=True)
            print()
        print(f"\n{len(''.join(state.text_iter()))} characters in all\n")
        asyncio.run(follow_two(engine))


if __name__ == "__main__":
    main()
