"""The folders that a release is made of: what each was made from, and the name it is registered under."""

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
