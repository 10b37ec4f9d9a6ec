from __future__ import annotations

import pytest

from nodes import Node


@pytest.fixture
def start(tmp_path):
    """Starts nodes, which end with the test."""
    nodes: list[Node] = []

    def run(*args: str, bootstrap=()) -> Node:
        nodes.append(Node(tmp_path / f"node-{len(nodes)}", args, bootstrap))
        return nodes[-1]

    yield run
    for node in nodes:
        node.kill()
