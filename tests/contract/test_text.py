"""What holds for the text of every file: no place of one machine, docs that point at what is there, modules of a size."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest
from imports import ROOT, modules

MOST_LINES = 400
HOSTS = ("pypi" + ".org", "python" + "hosted", "download." + "pytorch", "docker" + ".io", "gh" + "cr.io", "qu" + "ay.io")
PLACES = re.compile("|".join([r"(?<![\w.-])/wo" + r"rk/", r"/ro" + r"ot/", r"/ho" + r"me/[a-z]", *map(re.escape, HOSTS)]))


def tracked() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def text_of(name: str) -> str:
    try:
        return (ROOT / name).read_text()
    except UnicodeDecodeError:
        return ""


def test_no_file_names_a_place_of_one_machine_or_a_registry():
    found = [f"{name}:{number}: {line.strip()[:100]}" for name in tracked()
             for number, line in enumerate(text_of(name).splitlines(), 1) if PLACES.search(line)]
    assert found == []


def test_the_search_would_find_one():
    assert PLACES.search("see /wo" + "rk/main") and PLACES.search("https://pypi" + ".org/simple")
    assert not PLACES.search("workers/app.py") and not PLACES.search("the network/worker")


@pytest.mark.parametrize("name", [name for name, path in modules().items() if path.stat().st_size])
def test_every_module_says_what_it_is_and_has_a_size(name):
    text = modules()[name].read_text()
    assert (ast.get_docstring(ast.parse(text)) or "").strip(), "no docstring"
    assert text.count("\n") <= MOST_LINES


def test_links_in_the_docs_lead_somewhere():
    broken = []
    for name in tracked():
        if name.endswith(".md"):
            for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text_of(name)):
                if not ((ROOT / name).parent / target).exists():
                    broken.append(f"{name} → {target}")
    assert broken == []


def test_commands_of_the_readme_exist():
    makefile, readme = (ROOT / "Makefile").read_text(), (ROOT / "README.md").read_text()
    goals = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)", readme)) | set(re.findall(r"^\s*make ([a-z]+)", readme, re.MULTILINE))
    assert {"demo", "test"} <= named <= goals
