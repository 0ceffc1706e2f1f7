"""Operators of a graph that was not written in Python carry the graph's own names."""

from __future__ import annotations

from ranum.source import Source, located, user_source

PLACE = Source(
    file="model.onnx",
    line=0,
    end_line=0,
    column=-1,
    end_column=-1,
    module="encoder",
    lines=("Log(probabilities)",),
    node="/encoder/Log_3",
)


def test_a_located_block_names_the_graph_node() -> None:
    with located(PLACE):
        assert user_source() is PLACE
    assert user_source().line > 0


def test_located_blocks_nest() -> None:
    inner = Source("model.onnx", 0, 0, -1, -1, node="inner")
    with located(PLACE):
        with located(inner):
            assert user_source() is inner
        assert user_source() is PLACE


def test_a_node_shows_its_file_its_name_and_what_it_computes() -> None:
    assert PLACE.is_known
    assert str(PLACE) == "model.onnx:/encoder/Log_3 `Log(probabilities)`"
    assert PLACE.to_dict()["node"] == "/encoder/Log_3"


def test_nodes_of_one_graph_are_different_places() -> None:
    assert Source("m.onnx", 0, 0, -1, -1, node="a") != Source("m.onnx", 0, 0, -1, -1, node="b")
