"""The documentation site builds without warnings; its links lead somewhere, and its pages fit a phone."""

import os
import re
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="needs the extra `docs`")
ROOT = Path(__file__).parents[1]
CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "WARNING" not in result.stderr
    return folder


class Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.links += [values[name] for name in ("href", "src") if values.get(name)]


def broken_links(folder):
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor_missing = target in pages and parts.fragment not in pages[target].anchors | {"", "__skip"}
            if not target.exists() or anchor_missing:
                yield f"{path.name}: {link}"


def test_every_link_leads_to_a_file_and_an_anchor(site):
    assert list(broken_links(site)) == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<a href="b.html">x</a><a href="#none">y</a><a id="one" href="#one">z</a>'
    )
    assert list(broken_links(tmp_path)) == ["a.html: b.html", "a.html: #none"]


def test_no_page_requests_other_hosts(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert 'src="http' not in text, path.name
        assert "fonts.googleapis" not in text, path.name


def test_no_list_or_table_is_left_in_a_paragraph(site):
    for path in site.rglob("*.html"):
        text = re.sub(r"<pre>.*?</pre>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert re.findall(r"(?m)^(?:<p>|<li>)?(?:- |1\. |\|).*", text) == [], path.name


def test_llms_txt_lists_every_page_of_the_navigation(site):
    listed = [
        line.split("](")[1].rstrip(")")
        for line in (site / "llms.txt").read_text().splitlines()
        if "](" in line
    ]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert pages <= set(listed)
    for name in listed:
        assert (site / name).read_text(encoding="utf-8").strip() in (site / "llms-full.txt").read_text(
            encoding="utf-8"
        )


@pytest.fixture
def address(site):
    handler = partial(SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs chromium in /usr/bin")
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_open_in_a_browser_and_fit(site, address, width):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra `dev`")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=options)
        page = browser.new_page(viewport={"width": width, "height": 900})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        for path in sorted(site.glob("*.html")):
            page.goto(f"{address}/{path.name}")
            assert page.locator("h1").first.is_visible(), path.name
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        browser.close()
    assert errors == []
