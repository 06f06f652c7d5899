"""From a pipeline to a program."""

import functools

from acme_sgl.framework import Pipeline
from sgl_core.language import SglFunction, function, gen
from sgl_core.plugins import get_host


def program_of(pipeline: Pipeline) -> SglFunction:
    """A program that says what the pipeline says; blanks are lowered by whoever knows them."""
    builder = functools.partial(gen, max_new_tokens=8)
    lowered = [step if isinstance(step, str) else get_host().lower(step, builder) for step in pipeline.steps]

    @function
    def acme_pipeline(s):
        for step in lowered:
            s += step

    return acme_pipeline
