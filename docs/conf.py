"""
How `make docs` builds these pages and the reference of the API: Sphinx, with MyST for Markdown.

Docstrings are Google's in Markdown, as transformers has them; napoleon wants reStructuredText, so `to_rst` rewrites
what differs. A warning is an error.
"""

import re
from typing import Any

import transformers
from transformers import modeling_outputs

import modeling_ofa


project = "modeling-ofa"
release = modeling_ofa.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
html_theme = "furo"
html_title = f"{project} {release}"

myst_heading_anchors = 3
# Snippets may have an ellipsis for what is the reader's, which is no Python.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "show-inheritance": True,
    "exclude-members": "config_class, generate",  # whose docstrings are transformers'
    "ignore-module-all": True,
}
autodoc_inherit_docstrings = False  # those of transformers speak of transformers' own pages
autodoc_member_order = "bysource"
autodoc_mock_imports = ["gradio"]
autodoc_typehints = "none"  # signatures have them, and docstrings the shapes
napoleon_use_rtype = False
# Links in docstrings must lead somewhere in these pages; types in signatures are mostly of other libraries.
nitpicky = True
nitpick_ignore_regex = [("py:(class|exc|data)", ".*")]


def to_rst(lines: list[str]) -> list[str]:
    """
    Rewrites a docstring from Markdown to reStructuredText.

    Args:
        lines (`list[str]`): Its lines.
    """
    text = "\n".join(lines)
    text = re.sub(r"^( *)```\w*\n(.*?)^ *```", lambda match: match[2], text, flags=re.MULTILINE | re.DOTALL)
    links: list[str] = []

    def keep(role: str) -> str:
        links.append(role)
        return f"\0{len(links) - 1}\0"

    text = re.sub(r"\[`~?([\w.]+)`\]", lambda match: keep(_link(match[1])), text)
    text = re.sub(r"\[([^\]\[`]+)\]\((https?://[^)]+)\)", lambda match: keep(f"`{match[1]} <{match[2]}>`__"), text)
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", lambda match: keep(f"``{match[1]}``"), text)
    text = re.sub(r"\0(\d+)\0(?=\w)", r"\0\1\0\\ ", text)
    while "\0" in text:
        text = re.sub(r"\0(\d+)\0", lambda match: links[int(match[1])], text)
    return text.split("\n")


def _link(name: str) -> str:
    """Gives a reference to a name of this package, and plain code for one of another library."""
    first = name.split(".")[0]
    is_foreign = first in ("torch", "transformers") or hasattr(transformers, first) or hasattr(modeling_outputs, first)
    return f"``{name}``" if is_foreign else f":py:obj:`{name} <.{name}>`"


def complete(app: Any, docname: str, source: list[str]) -> None:
    """Makes of a page as GitHub shows it one of Sphinx: links out of the folder, and the order of pages."""
    source[0] = re.sub(r"\]\(\.\./([\w/]+\.md)", r"](path:../\1", source[0])
    if docname == root_doc:
        linked = re.findall(r"\]\((\w+)\.md\)", source[0])
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", *dict.fromkeys(linked), "```\n"])


def rewrite(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Gives napoleon what it understands."""
    lines[:] = to_rst(lines)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", complete)
    app.connect("autodoc-process-docstring", rewrite, priority=400)  # before napoleon
