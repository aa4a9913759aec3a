"""What MkDocs does not do by itself: parts of other files, results of experiments, the help of the command, pictures.

A page asks for it in a comment of its own line: `<!-- include README.md#evaluation -->` takes what stands between
`<!-- evaluation -->` and `<!-- /evaluation -->` there, `<!-- experiments -->` the tables under `docs/experiments`,
`<!-- command line -->` the help of every command.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIRECTIVE = re.compile(r"^<!-- (include (?P<file>\S+)#(?P<part>\S+)|experiments|command line) -->$", re.MULTILINE)
PICTURE = re.compile(r'<img alt="[^"]*" src="(?:\.\./)*pictures/(?P<name>[a-z]+)\.svg" ?/?>')


def on_page_markdown(markdown: str, **_) -> str:
    """Puts what a page asks for into it."""
    return DIRECTIVE.sub(expand, markdown)


def on_page_content(html: str, **_) -> str:
    """Puts pictures into the page itself, so that they have the page's colours."""
    return PICTURE.sub(lambda match: (ROOT / f"docs/pictures/{match['name']}.svg").read_text(), html)


def expand(match: re.Match) -> str:
    if match["file"]:
        return part_of(ROOT / match["file"], match["part"])
    return experiments() if match[1] == "experiments" else command_line()


def part_of(path: Path, name: str) -> str:
    """What stands between the markers `name` of a file.

    Raises:
        ValueError: there are no such markers.
    """
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", path.read_text(), re.DOTALL)
    if not found:
        raise ValueError(f"{path} has no part between <!-- {name} --> and <!-- /{name} -->")
    return found[1]


def experiments() -> str:
    """The table and the plot of every experiment whose results are in the repository."""
    tables = sorted((ROOT / "docs" / "experiments").glob("*/results.md"))
    if not tables:
        return "No results are in the repository yet; the scripts above make them."
    parts = []
    for table in tables:
        title, text = table.read_text().removeprefix("# ").split("\n", 1)
        parts.append(f"## {title}\n{text}")
        if (table.parent / "results.png").exists():
            parts.append(f"![{title}](../experiments/{table.parent.name}/results.png)")
    return "\n\n".join(parts)


def command_line() -> str:
    """The help of `dacse` and of all its commands."""
    import typer
    from typer.cli import get_docs_for_click

    from command_dacse.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="dacse").split("\n", 1)[1]
    for part in command.commands.values():
        text = text.replace(part.get_short_help_str(), part.get_short_help_str(limit=1000))  # 45 letters are too few
    return text.replace("][", "]\\[")  # which would be a link
