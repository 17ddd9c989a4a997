"""Makes what Sphinx reads, a folder for each language, of what the repository has: docs/stage.py OUT [--repository URL]

Documents are written for GitHub, where they are read as they lie: links lead to files, a translation lies beside its
original as NAME.zh-CN.md. Here each becomes a page NAME, a link to a file outside docs/ leads to a page that shows it,
`<!-- picture NAME: text -->` becomes a picture that pictures.py makes, and `<!-- api -->` what the docstrings say.
Tutorials are Python scripts (jupytext's percent format). They run once; each language keeps its cells of text.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import runpy
import shutil
from pathlib import Path
from urllib.parse import quote

import api
import jupytext
import nbformat
import pictures
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LANGUAGES = {"en": 0, "zh-CN": 1}
# What the side bar lists, in its order.
CONTENTS = {
    ("Start", "入门"): ["start", "tutorials/first_steps", "operators"],
    ("Use", "使用"): ["training", "tutorials/train_a_map", "memory", "numerics", "torch", "cpp", "gallery"],
    ("Reference", "参考"): ["api", "speed", "design", "changelog", "deprecation"],
}
SOURCES = {"changelog": ROOT / "CHANGELOG.md"}  # the others lie in docs/ under their names

tree = runpy.run_path(str(ROOT / "ci/check-docs"))
CODE = re.compile(rf"({tree['FENCE'].pattern}|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"(\]\(\s*<?)([^)\s>]+)")
LANGUAGE_LINE = re.compile(r"^(English \| \[简体中文\]|\[English\])\(?.*\n\n?", re.MULTILINE)
PICTURE = re.compile(r"<!-- picture ([\w-]+): (.*?) -->", re.DOTALL)
LEXERS = {".py": "python", ".cpp": "cpp", ".h": "cpp", ".cu": "cuda", ".cuh": "cuda", ".toml": "toml", ".json": "json"}


def translated(path: Path, language: str) -> Path:
    """The file that says the same in that language, or the file itself where there is none."""
    name = path.name.replace(".zh-CN.", ".")
    other = path.with_name(name.replace(".md", ".zh-CN.md") if language == "zh-CN" else name)
    return other if other.exists() else path


class Tree:
    """The pages of one language."""

    def __init__(self, folder: Path, language: str) -> None:
        self.folder, self.language = folder, language
        self.made: set[str] = set()

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        self.made.add(name)

    def page_of(self, path: Path) -> str:
        """The file here to which a link to ``path`` leads; it is made unless it has been."""
        inside = path.is_relative_to(DOCS)
        name = path.relative_to(DOCS if inside else ROOT).as_posix().replace(".zh-CN.", ".")
        for title, source in SOURCES.items():
            if path == source:
                return f"{title}.md"
        if path.parent == DOCS / "tutorials":
            return name.replace(".py", ".ipynb")
        if inside and path.suffix == ".md":
            return name
        if inside and path.suffix == ".png":
            if name not in self.made:
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, self.folder / name)
                self.made.add(name)
            return name
        page = f"source/{name}" if name.endswith(".md") else f"source/{name}.md"
        if page not in self.made:
            self.made.add(page)
            self.write(page, self.shown(path, page))
        return page

    def shown(self, path: Path, page: str) -> str:
        """A page with the content of a file or folder of the repository."""
        if path.suffix == ".md":
            return "---\norphan: true\n---\n\n" + self.document(translated(path, self.language), page)
        title = f"---\norphan: true\n---\n\n# {path.relative_to(ROOT)}\n\n"
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            for file in files:
                target = self.folder / Path(page).parent / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            return title + "".join(f"- {{download}}`{file.name} <{file.name}>`\n" for file in files)
        return f"{title}``````{LEXERS.get(path.suffix, 'none')}\n{path.read_text('utf-8')}``````\n"

    def document(self, path: Path, page: str) -> str:
        """The text of a document, with links that hold for ``page``."""

        def led(match: re.Match[str]) -> str:
            target, _, anchor = match[2].partition("#")
            if not target or re.match(r"[a-z][a-z0-9+.-]*:", target):
                return match[0]
            found = translated((path.parent / target).resolve(), self.language)
            relative = os.path.relpath(self.page_of(found), Path(page).parent)
            return f"{match[1]}{relative}" + (f"#{anchor}" if anchor else "")

        def drawn(match: re.Match[str]) -> str:
            name = f"pictures/{match[1]}.svg"
            if match[1] not in pictures.DRAWN:
                raise SystemExit(f"{path}: pictures.py draws no {match[1]}, but {sorted(pictures.DRAWN)}")
            if name not in self.made:
                self.made.add(name)
                (self.folder / "pictures").mkdir(exist_ok=True)
                pictures.draw(match[1], self.folder / name, self.language)
            return f"![{' '.join(match[2].split())}]({os.path.relpath(name, Path(page).parent)})"

        text = LANGUAGE_LINE.sub("", path.read_text("utf-8"), count=1)
        pieces = CODE.split(text)
        step = CODE.groups + 1  # between two texts stand the groups of CODE, of which the first is all of it
        texts = [TARGET.sub(led, PICTURE.sub(lambda m: f"\0{m[0]}\0", piece)) for piece in pieces[::step]]
        texts = [re.sub(r"\0(.*?)\0", lambda m: PICTURE.sub(drawn, m[1]), piece, flags=re.DOTALL) for piece in texts]
        kept = [*pieces[1::step], ""]
        text = "".join(piece + code for piece, code in zip(texts, kept, strict=True))
        return text.replace("<!-- api -->", api.directives(self.language))

    def index(self) -> None:
        text = self.document(translated(DOCS / "index.md", self.language), "index.md")
        for caption, names in CONTENTS.items():
            listed = "\n".join(names)
            text += f"\n```{{toctree}}\n:hidden:\n:caption: {caption[LANGUAGES[self.language]]}\n\n{listed}\n```\n"
        self.write("index.md", text)

    def pages(self, notebooks: dict[str, nbformat.NotebookNode], repository: str) -> None:
        self.index()
        for name in (name for names in CONTENTS.values() for name in names):
            if name in notebooks:
                notebook = of_language(notebooks[name], self.language)
                self.download(name, notebook)
                note = introduction(name, self.language, repository)
                notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note, id="download"))
                self.write(f"{name}.ipynb", nbformat.writes(notebook))
            else:
                source = translated(SOURCES.get(name, DOCS / f"{name}.md"), self.language)
                self.write(f"{name}.md", self.document(source, f"{name}.md"))

    def download(self, name: str, notebook: nbformat.NotebookNode) -> None:
        """The notebook for a reader, which installs the package first."""
        import dynamic_dilation_unfold

        version = dynamic_dilation_unfold.__version__.partition("+")[0]
        install = f"%pip install --quiet dynamic-dilation-unfold=={version} matplotlib"
        ours = copy.deepcopy(notebook)
        ours.cells.insert(1, nbformat.v4.new_code_cell(install, id="install"))
        for cell in ours.cells:
            cell.source = re.sub(r"\]\(\.\./[^)]*\)", "]", cell.source) if cell.cell_type == "markdown" else cell.source
        self.write(f"notebooks/{Path(name).name}.ipynb", nbformat.writes(ours))


def introduction(name: str, language: str, repository: str) -> str:
    """Where a page's notebook is to be had; one on Colab only of a repository that the build knows."""
    file = f"{Path(name).name}.ipynb"
    text = (
        "The notebook of this page: {download}`{0} <../notebooks/{0}>`",
        "本页的笔记本：{download}`{0} <../notebooks/{0}>`",
    )
    line = text[LANGUAGES[language]].replace("{0}", file)
    if not repository:
        return line
    folder = "en" if language == "en" else "zh-CN"
    path = repository.removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{quote(path)}/blob/notebooks/{folder}/{file}"
    return f"{line} · " + (f"[open in Colab]({address})", f"[在 Colab 中打开]({address})")[LANGUAGES[language]]


def of_language(notebook: nbformat.NotebookNode, language: str) -> nbformat.NotebookNode:
    ours = copy.deepcopy(notebook)
    ours.cells = [cell for cell in ours.cells if cell.metadata.get("text", language) == language]
    for cell in ours.cells:
        cell.metadata.pop("text", None)
    return ours


def executed(script: Path) -> nbformat.NotebookNode:
    notebook = jupytext.read(script, fmt="py:percent")
    said = [cell.metadata.get("text") for cell in notebook.cells if cell.cell_type == "markdown"]
    if not said or said != list(LANGUAGES) * (len(said) // 2):
        raise SystemExit(f"{script}: each text in English, then in Chinese: {said}")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell{number}"
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    client = NotebookClient(
        notebook,
        timeout=300,
        startup_timeout=300,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(script.parent)}},
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ from build to build
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                raise SystemExit(f"{script}: a cell wrote to stderr, as warnings do: {output.text}")
        if "plt.subplots" in cell.source and not any("image/png" in o.get("data", {}) for o in cell.outputs):
            raise SystemExit(f"{script}: a cell shows no picture: {cell.source}")
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repository", default="", help="https://github.com/OWNER/NAME, for links to Colab")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.out, ignore_errors=True)
    listed = {name for names in CONTENTS.values() for name in names}
    scripts = {f"tutorials/{p.stem}": p for p in sorted((DOCS / "tutorials").glob("*.py"))}
    there = set(scripts) | {p.stem for p in DOCS.glob("*.md") if ".zh-CN" not in p.name} | set(SOURCES)
    if listed != there - {"index"}:
        raise SystemExit(f"not in CONTENTS, or not there: {sorted(listed ^ (there - {'index'}))}")
    os.environ.pop("MPLBACKEND", None)  # a notebook's own shows pictures below their cell
    os.environ["OMP_NUM_THREADS"] = "1"  # for the tutorials: their tensors are too small to be shared
    notebooks = {name: executed(script) for name, script in scripts.items()}
    for language in LANGUAGES:
        Tree(arguments.out / language, language).pages(notebooks, arguments.repository)


if __name__ == "__main__":
    main()
