"""Where a choice begins: prompt and choice are encoded as one string, as the model would have read them.

Used by the language's ``select`` and by ``engine.score``, so both score the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from sgl_core.backend import TextCodec

__all__ = ["joint_spans"]


def joint_spans(
    codec: TextCodec, settled: tuple[int, ...], tail: str, choices: Sequence[str]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Split prompt + choice into a prompt that all choices share and one span each.

    Where a choice merges with the end of the tail ("http" + "://"), the merged tokens belong to the spans of *all* choices,
    so that they stand on the same footing.

    Args:
        settled: ids before the tail; never encoded again.
        tail: constant text before the choices; may be empty.
        choices: at least one, none empty.

    Returns:
        The shared prompt's ids, and for each choice the ids that follow; a span is never empty.
    """
    if not tail:
        return settled, tuple(codec.encode(choice) for choice in choices)
    joint = [codec.encode(tail + choice) for choice in choices]
    common = codec.encode(tail)
    for ids in joint:
        same = 0
        # at most len(ids) - 1, so that every span keeps a token
        for ours, theirs in zip(common, ids[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        common = common[:same]
    return settled + common, tuple(ids[len(common) :] for ids in joint)
