"""Pages for people, each one file that needs nothing beside it: templates filled in strictly, with everything escaped."""

from collections.abc import Callable, Mapping
from pathlib import Path

import jinja2


def render(template: Path, filters: Mapping[str, Callable[..., str]] = {}, **values: object) -> str:
    """The template with its values filled in; a value that it names and is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(template.name).render(**values)
