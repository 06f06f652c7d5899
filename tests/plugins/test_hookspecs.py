"""The values that cross the hooks."""

import dataclasses

import pytest

from sgl_core.errors import InvalidArgumentError
from sgl_core.handle import RequestHandle
from sgl_core.plugins import AdapterSpec, RequestRecord, hookspecs
from sgl_core.plugins.loading import HOOK_NAMES
from sgl_core.types import FinishReason, GenResult, Timings, Usage


def test_every_hook_carries_the_name_of_the_project_and_is_known_to_the_host():
    specified = [name for name, value in vars(hookspecs).items() if hasattr(value, "sgl_core_spec")]
    assert sorted(specified) == list(HOOK_NAMES)
    assert all(name.startswith("sgl_") for name in specified)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", None),
        ("api_version", "1"),
        ("api_version", True),
        ("create", "Client"),
        ("requires", ["json"]),
        ("requires", ("json.decoder",)),
        ("requires", (None,)),
        ("extra", None),
    ],
)
def test_a_spec_refuses_a_field_that_cannot_be_used(field, value):
    good = AdapterSpec("acme", 1, dict, ("json",), "client")
    with pytest.raises(InvalidArgumentError, match=field):
        dataclasses.replace(good, **{field: value})


def test_the_record_of_a_request_that_succeeded_has_its_counts():
    handle = RequestHandle()
    usage, timings = Usage(5, 3, 2), Timings(0.1, 0.2, 0.3)
    handle.finish(GenResult("a secret", (1, 2), FinishReason.STOP, usage, timings=timings))
    record = RequestRecord.of(handle, "native")
    assert record == RequestRecord(handle.id, "native", FinishReason.STOP, usage, timings, None)
    assert "secret" not in repr(record)


def test_the_record_of_a_request_with_several_completions_counts_all_of_them_and_the_prompt_once():
    handle = RequestHandle()
    handle.finish([GenResult("a", (1,), FinishReason.STOP, Usage(5, cached, 2)) for cached in (3, 5, 5)])
    record = RequestRecord.of(handle, "langchain")
    assert (record.finish_reason, record.usage) == (FinishReason.STOP, Usage(5, 3, 6))


def test_the_record_of_a_request_that_failed_has_its_error():
    handle = RequestHandle()
    error = RuntimeError("no more memory")
    handle.fail(error)
    assert RequestRecord.of(handle, "dspy") == RequestRecord(handle.id, "dspy", error=error)


def test_a_request_that_runs_has_no_record_yet():
    with pytest.raises(TimeoutError):
        RequestRecord.of(RequestHandle(), "native")
