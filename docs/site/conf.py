"""Settings of Sphinx for the pages that stage.py makes, for the language that DDU_DOCS_LANGUAGE names.

Sphinx with MyST and furo, rather than MkDocs: the pages stay the Markdown files that repositories show, in pairs
beside each other, where MkDocs' translations want folders of their own; autodoc reads the docstrings of the package as
it is compiled; notebooks and links are checked by the same build, whose warnings are errors; and furo is plain, narrow
screens included.
"""

import logging
import os
import re
from pathlib import Path

import dynamic_dilation_unfold
from sphinx.search.zh import SearchChinese

HERE = Path(__file__).parent
CHINESE = os.environ["DDU_DOCS_LANGUAGE"] == "zh-CN"

project = "Dynamic Dilation Unfold"
author = "The Dynamic Dilation Unfold authors"
project_copyright = re.search(r"Copyright \(c\) (.*)", (HERE.parents[1] / "LICENSE").read_text("utf-8"))[1]
version = release = dynamic_dilation_unfold.__version__
language = "zh_CN" if CHINESE else "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["notebooks"]  # for readers to take away
nitpicky = False  # docstrings name types of torch, whose inventory a build without network cannot read
highlight_language = "none"
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_heading_anchors = 4  # the ids that GitHub gives, which ci/check-docs knows too
myst_enable_extensions = ["attrs_inline", "colon_fence"]
nb_execution_mode = "off"  # stage.py has run them, once for both languages
nb_merge_streams = True

autodoc_typehints = "none"  # the docstrings say types with their shapes
autodoc_inherit_docstrings = False  # what torch says of a module's forward
autodoc_member_order = "bysource"
napoleon_google_docstring, napoleon_numpy_docstring = True, False

smartquotes = False  # the quotes of English would be set in Chinese

# Sphinx searches Chinese with the stemmer of English, whose file has no class of the name that it asks for.
SearchChinese.language_name = "English"
logging.getLogger("jieba").setLevel(logging.WARNING)  # it tells how long its dictionary takes to load

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_show_sphinx = False
html_last_updated_fmt = None  # the same source gives the same pages
html_domain_indices = html_use_index = False
templates_path = [str(HERE / "templates")]
html_context = {"chinese": CHINESE}
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
copybutton_prompt_text = "$ "
