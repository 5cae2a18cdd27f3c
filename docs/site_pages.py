"""Hook of mkdocs: add the pages that stand outside docs/ with their links adapted, and write llms.txt.

llms.txt lists the pages with links to their Markdown, which is copied beside the HTML; llms-full.txt contains them all.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation

PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "LICENSE": "LICENSE.md",
    "models/nuclei.md": "models/nuclei.md",
    "models/nuclei_all.md": "models/nuclei_all.md",
}
"""Files of the repository -> pages of the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `PAGES` to the files of docs/."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        content = site_links((root / source).read_text(encoding="utf-8"))
        if source == "LICENSE":
            content = f"# License\n```\n{content}\n```\n"
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Adapt the links of the pages in docs/ that lead outside it, and separate lists and tables from the line above."""
    return separate_lists(
        markdown.replace("](../models/", "](models/").replace("](../README.md", "](index.md")
    )


def separate_lists(markdown: str) -> str:
    """Insert the empty line that Python-Markdown needs before a list or table; GitHub does not need it."""
    lines, in_code = [""], False
    for line in markdown.split("\n"):
        # beginnings of the line above that belong to the same list or table, or end the paragraph
        goes_on = r"\||$" if line.startswith("|") else r"[ #]|- |\d+\. |$"
        if not in_code and re.match(r"- |1\. |\|", line) and not re.match(goes_on, lines[-1]):
            lines.append("")
        in_code ^= line.startswith("```")
        lines.append(line)
    return "\n".join(lines[1:])


def on_nav(nav: Navigation, config: MkDocsConfig, **_: object) -> None:
    """Keep the pages in the order of the navigation for `on_env`."""
    config.extra["pages"] = nav.pages


def on_env(_: object, config: MkDocsConfig, **__: object) -> None:
    """Write llms.txt, llms-full.txt and the Markdown of the pages into the site."""
    site, pages = Path(config.site_dir), config.extra["pages"]
    index = [f"# {config.site_name}\n\n> {config.site_description}\n\n## Pages"]
    for page in pages:
        path = site / page.file.src_uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.markdown, encoding="utf-8")
        index.append(f"- [{page.title}]({page.file.src_uri})")
    (site / "llms.txt").write_text("\n".join(index) + "\n", encoding="utf-8")
    (site / "llms-full.txt").write_text("\n\n".join(page.markdown for page in pages), encoding="utf-8")


def site_links(text: str) -> str:
    """Return Markdown whose links lead to pages of the site, and whose link texts name no folder.

    `[docs/data.md](docs/data.md)` becomes `[data.md](data.md)`.
    """
    text = re.sub(r"\[docs/([\w.]+)\]\(docs/", r"[\1](", text)
    text = re.sub(r"\]\((\.\./)?docs/", r"](\1", text)
    return text.replace("](LICENSE)", "](LICENSE.md)")
