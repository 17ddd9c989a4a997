"""Links that lead nowhere are found by ci/check-site."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

dead_links = runpy.run_path(str(Path(__file__).parents[1] / "check-site"))["dead_links"]


def site(folder: Path, link: str) -> Path:
    for number in range(20):
        (folder / f"page{number}.html").write_text('<h1 id="top">A page</h1><img src="picture.svg">')
    (folder / "picture.svg").touch()
    (folder / "deeper").mkdir()
    (folder / "deeper" / "index.html").write_text(f'<a href="{link}">a link</a>')
    return folder


@pytest.mark.parametrize(
    "link", ["../page1.html", "../page1.html#top", "../deeper/", "https://elsewhere.example/no#where", "../picture.svg"]
)
def test_links_that_lead_somewhere(link: str, tmp_path: Path) -> None:
    assert list(dead_links(site(tmp_path, link))) == []


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("../page99.html", "does not exist"),
        ("page1.html", "does not exist"),
        ("../page1.html#bottom", "no such place"),
        ("#here", "no such place"),
    ],
)
def test_links_that_do_not(link: str, said: str, tmp_path: Path) -> None:
    (problem,) = dead_links(site(tmp_path, link))
    assert problem.startswith("deeper/index.html")
    assert said in problem


def test_a_site_of_no_pages(tmp_path: Path) -> None:
    assert "only 0 pages" in next(dead_links(tmp_path))
