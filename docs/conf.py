# SPDX-License-Identifier: MIT
"""Makes the site: ``make docs``. Every warning is an error: broken links, missing references, pages in no menu."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

import halotile

ROOT = Path(__file__).parents[1]

project, author, version = "halotile", "the authors of halotile", halotile.__version__
project_copyright = "the authors of halotile, MIT licence"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["conf.py"]
nitpicky = True
myst_heading_anchors = 3
suppress_warnings: list[str] = []

html_theme = "furo"
html_title = "halotile"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
templates_path: list[str] = []
pygments_style, pygments_dark_style = "tango", "monokai"
copybutton_exclude = ".linenos, .gp, .go"

# Types of other libraries have no page here, and the pages of theirs cannot be asked without a network.
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_param = False
napoleon_use_rtype = False


class Help(Directive):
    """The help of a command, as it prints it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        command = [sys.executable, "-m", "halotile", self.arguments[0], "--help"]
        text = subprocess.run(command, env={**os.environ, "COLUMNS": "88"}, capture_output=True, text=True, check=True)
        return [nodes.literal_block(text.stdout, text.stdout, language="text")]


def setup(app: Sphinx) -> None:
    app.add_directive("help", Help)
