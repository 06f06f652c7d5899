"""Log-probabilities in OpenAI's shape."""

from sgl_core.chat.logprobs import openai_logprobs
from sgl_core.testing import ByteCodec
from sgl_core.types import TokenLogprob


def test_each_token_has_text_bytes_and_alternatives():
    tokens = (TokenLogprob(97, -0.5, ((98, -0.25), (97, -0.5))), TokenLogprob(10, -1.0))
    assert openai_logprobs(tokens, ByteCodec()) == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [
                {"token": "b", "logprob": -0.25, "bytes": [98]},
                {"token": "a", "logprob": -0.5, "bytes": [97]},
            ],
        },
        {"token": "\n", "logprob": -1.0, "bytes": [10], "top_logprobs": []},
    ]


def test_a_token_that_is_a_part_of_a_character_has_no_bytes():
    (entry,) = openai_logprobs((TokenLogprob(0xC3, -0.5),), ByteCodec())
    assert entry["bytes"] is None
