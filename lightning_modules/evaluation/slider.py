"""HTML pages with a border between two pictures that can be dragged, of the templates in this folder."""

import base64
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """The page of a template that lies here; values are escaped.

    Raises:
        ModuleNotFoundError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ModuleNotFoundError("pages need jinja2: install this project's extra `report`") from error

    pages = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.policies["json.dumps_kwargs"] = {}  # the layers in the order of the table
    return pages.get_template(template).render(**values)


def data_url(content: bytes, kind: str = "png") -> str:
    """A picture inside of the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
