"""The folders that a release is made of: what each was made from, and the name it is registered under."""

from collections.abc import Mapping
from typing import TypeVar

About = TypeVar("About")

PARENTS = {
    "foundation": {},
    "aligned": {"foundation": "foundation"},
    "vqa_expert": {"foundation": "foundation", "aligned": "aligned"},
    "grounding_expert": {"foundation": "foundation", "aligned": "aligned"},
    "router": {"foundation": "foundation", "aligned": "aligned", "vqa": "vqa_expert", "grounding": "grounding_expert"},
    "reasoner": {
        "foundation": "foundation",
        "aligned": "aligned",
        "vqa": "vqa_expert",
        "grounding": "grounding_expert",
        "router": "router",
    },
}
"""By folder: its parents by the names its manifest gives them, and the folders those are."""

BASE = "foundation"
"""The folder of what is frozen: base models, pinned by hash and not copied."""

REGISTERED = {
    "aligned": "unimed-align",
    "vqa_expert": "unimed-vqa-expert",
    "grounding_expert": "unimed-grounding-expert",
    "router": "unimed-router",
    "reasoner": "unimed-reasoner",
}
"""By folder: its registered model. The foundation is none: it is pinned by hash and not copied."""

RELEASE = "unimed-medvlm"
"""The registered model whose versions are releases."""

IN_USE = f"models:/{RELEASE}@champion"
"""The address of the release that is in use."""


def in_order(parts: Mapping[str, About]) -> list[tuple[str, About]]:
    """Parts by folder in the order in which they are made, unknown ones last."""
    known = list(PARENTS)
    return sorted(parts.items(), key=lambda item: (known.index(item[0]) if item[0] in known else len(known), item[0]))
