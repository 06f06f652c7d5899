"""For tests: a backend without a model, a codec without a vocabulary, and what every backend, codec and adapter must do.

Sits on top of everything; nothing of the library imports it.
"""

from sgl_core.testing.adapter_contract import AdapterContract
from sgl_core.testing.byte_codec import ByteCodec
from sgl_core.testing.contracts import BackendContract, CodecContract
from sgl_core.testing.fake_backend import FakeBackend

__all__ = ["AdapterContract", "BackendContract", "ByteCodec", "CodecContract", "FakeBackend"]
