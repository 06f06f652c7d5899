"""The package: light to import, clear about what is missing."""

import subprocess
import sys

import pytest

import sgl_langchain


def output_of(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True).stdout.strip()


def test_importing_the_adapter_loads_neither_torch_nor_numpy():
    code = (
        "import sys\nfrom sgl_langchain import ChatSgl, SglLLM\nChatSgl(), SglLLM()\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'tokenizers'} & set(sys.modules)))"
    )
    assert output_of(code) == "[]"


def test_importing_the_adapter_is_quick_beyond_langchain_itself():
    code = (
        "import time\nfrom langchain_core.language_models import BaseChatModel, BaseLLM\nbefore = time.process_time()\n"
        "from sgl_langchain import ChatSgl, SglLLM\nprint(time.process_time() - before)"
    )
    assert any(float(output_of(code)) < 0.3 for _ in range(3))


@pytest.mark.parametrize("statement", ["import sgl_langchain", "from sgl_langchain import ChatSgl"])
def test_without_langchain_the_error_says_the_install_line(statement):
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        f"try: {statement}\nexcept ImportError as error: print(type(error).__name__, error)"
    )
    expected = "MissingExtraError langchain_core is not installed; run: pip install 'sgl-core[langchain]'"
    assert output_of(code) == expected


def test_an_import_error_from_inside_langchain_passes_through():
    code = (
        "import sys; sys.modules['pydantic'] = None\n"
        "try: from sgl_langchain import ChatSgl\nexcept ImportError as error: print(type(error).__name__)"
    )
    assert output_of(code) in {"ImportError", "ModuleNotFoundError"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="ChatSql"):
        _ = sgl_langchain.ChatSql
    assert set(sgl_langchain.__all__) <= set(dir(sgl_langchain))
