"""What stands around the code says the same as the code: version, changelog, checks, citation, links."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")


def test_the_changelog_has_the_version_and_what_is_new():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    sections = re.findall(r"^## \[(.+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[0] == "Unreleased" and version in sections


def test_a_commit_is_checked_by_what_ci_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert len(hooks) == 3
    for hook in hooks:
        assert any(line.startswith(hook["entry"]) for line in lines), hook["entry"]


def test_the_citation_is_read():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["title"].startswith("dacse") and citation["authors"] and citation["message"]
    assert citation["preferred-citation"]["url"].endswith("2510.02187")


def test_links_of_the_pages_at_the_top_lead_somewhere():
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", (ROOT / page).read_text())
    ]
    assert len(links) > 25
    for page, target in links:
        assert (ROOT / "".join(target)).exists(), f"{page}: {''.join(target)}"
