"""What can be asked of a chain without running it is the same plain and compiled."""


def test_schemas_types_and_names(both):
    def surface(side):
        runnable = side.runnable
        return {
            "input": runnable.get_input_jsonschema(),
            "output": runnable.get_output_jsonschema(),
            "config": runnable.get_config_jsonschema(),
            "specs": sorted(map(repr, runnable.config_specs)),
            "types": (repr(runnable.InputType), repr(runnable.OutputType)),
            "names": (runnable.get_name(), runnable.get_name("Input"), runnable.get_name(name="other")),
            "prompts": runnable.get_prompts(),
        }

    both.agree(surface)


def test_graphs(both):
    """The drawing's lines are sorted: LangChain orders the arrows by random ids."""

    def graph(side):
        graph = side.runnable.get_graph()
        return sorted(graph.draw_mermaid().splitlines()), graph.to_json()

    both.agree(graph)


def test_nothing_reaches_the_engine(both):
    for side in both.all():
        side.runnable.get_graph()
        repr(side.runnable)
    assert [request for side in both.all() for request in side.world.requests()] == []
