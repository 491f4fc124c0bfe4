"""A tree of things with what is known of them, for people (a page wide, hashes shortened) and for programs (JSON, hashes in full)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

NOT_HERE = "not here"
WIDTH = 100

_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{20,}(\.dir)?\b")
"""A hash, of which twelve digits are shown to people."""


@dataclass(frozen=True)
class Node:
    """One thing: what is known of it, whether it was held to its hash, and why it does not fit."""

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    state: str = ""
    fault: str = ""
    children: tuple["Node", ...] = ()

    def faults(self) -> Iterator[str]:
        """What does not match, in the order of the tree."""
        if self.fault:
            yield self.fault
        for child in self.children:
            yield from child.faults()

    def as_json(self) -> dict[str, Any]:
        """The tree as JSON values, hashes in full."""
        own = {"name": self.name, "facts": dict(self.facts), "state": self.state, "fault": self.fault}
        return {**own, "children": [child.as_json() for child in self.children]}

    def text(self) -> str:
        """The tree drawn for a terminal of 100 columns."""
        from rich.console import Console
        from rich.tree import Tree

        def grow(node: "Node", tree: Tree) -> Tree:
            for child in node.children:
                grow(child, tree.add(child._line()))
            return tree

        page = StringIO()
        console = Console(
            file=page, width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False, highlight=False, markup=False
        )
        console.print(grow(self, Tree(self._line())))
        return "\n".join(line.rstrip() for line in page.getvalue().splitlines())

    def _line(self) -> str:
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items())
        whole = f"{self.name}: {facts}" if facts else self.name
        return _HASH.sub(r"\1", whole) + (f" [{self.state}]" if self.state else "")


def hashed(name: str, facts: Mapping[str, str], fault: str, verify: bool, children: tuple[Node, ...] = ()) -> Node:
    """Something that is here, and was held to its hash if that was asked for."""
    return Node(name, facts, "does not match" if fault else "verified" if verify else "", fault, children)


def missing(name: str, facts: Mapping[str, str], fault: str = "") -> Node:
    """Something that is not here; a fault when it has to be."""
    return Node(name, facts, NOT_HERE, fault)
