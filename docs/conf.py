# SPDX-License-Identifier: MIT
"""Makes the site: ``make docs``. Every warning is an error: broken links, missing references, pages in no menu."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import halotile

project, author, version = "halotile", "the authors of halotile", halotile.__version__
project_copyright = "the authors of halotile, MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["conf.py"]
highlight_language = "none"
nitpicky = True
nitpick_ignore = [("py:class", "fractions.Fraction"), ("py:class", "collections.abc.Mapping")]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "halotile"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style, pygments_dark_style = "tango", "monokai"
copybutton_exclude = ".linenos, .gp, .go"

# Types of other libraries have no page here, and the pages of theirs cannot be asked without a network.
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
maximum_signature_line_length = 88
napoleon_custom_sections = [("Attributes", "params_style")]  # several names may share a line
napoleon_use_param = False
napoleon_use_keyword = False
napoleon_use_rtype = False


class Help(Directive):
    """The help of a command, as it prints it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", "halotile", self.arguments[0], "--help"]
        text = subprocess.run(command, env={**os.environ, "COLUMNS": "88"}, capture_output=True, text=True, check=True)
        return [nodes.literal_block(text.stdout, text.stdout, language="text")]


def link_pages(_app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]) -> None:
    """Docstrings name pages as files of the repository."""
    lines[:] = [re.sub(r"`{0,2}\bdocs/(\w+)\.md`{0,2}", r":doc:`\1`", line) for line in lines]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", link_pages)
    app.add_directive("help", Help)
