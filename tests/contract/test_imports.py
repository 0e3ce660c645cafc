"""Who may import whom, as docs/design.md draws it: between the packages, between the engine's stages, and without a ring."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from imports import PACKAGES, ROOT, cycles, imports, modules, name_of, own

LIGHT = ("cipm.errors", "cipm.options")
ALLOWED = {
    "cipm": ("cipm",),
    "backend": ("backend", *LIGHT, "cipm.allocation", "cipm.views"),
    "workers": ("workers", "backend.store", "backend.settings", "cipm"),
    "frontend": ("frontend", *LIGHT),
}
COMPOSER = "frontend.serve"  # the one place where the API and the pages meet
INSIDE_FUNCTIONS = {
    "cipm.compiled": ("numba",),  # heavy: only a process that computes pays for it
    "cipm.testing.models": ("transformers",),  # heavy: only who asks for such a model pays for it
}
DESIGN = (ROOT / "docs" / "design.md").read_text()


def within(target: str, allowed: tuple[str, ...]) -> bool:
    return any(target == name or target.startswith(f"{name}.") for name in allowed)


def stages() -> list[str]:
    """Return the parts of the engine in the order of the design's table, left to right, top to bottom."""
    table = DESIGN[DESIGN.index("| package | does |"):DESIGN.index("## Stages and artefacts")]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([a-z_]+)(?:/|\.py)?`", cell)]
    return [f"cipm.{name}" for name in names]


def stage_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_the_walk_sees_every_module():
    assert {name.split(".")[0] for name in modules()} == set(PACKAGES)
    assert len(modules()) > 100 and len(imports()) > 500
    assert "backend.app" in {found.target for found in imports() if found.module == COMPOSER}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_design_allows(package):
    wrong = [str(i) for i in imports() if own(i) and i.module.split(".")[0] == package
             and i.target != "cipm"  # its own few names, the version among them
             and not within(i.target, ALLOWED[package]) and not (i.module == COMPOSER and within(i.target, ("backend",)))]
    assert wrong == []


def test_nothing_imports_the_composer():
    assert [str(i) for i in imports() if within(i.target, (COMPOSER,)) and i.module != COMPOSER] == []


def test_the_store_knows_neither_routes_nor_app():
    wrong = [str(i) for i in imports() if within(i.module, ("backend.store",)) and within(i.target, ("backend",))
             and not within(i.target, ("backend.store", "backend.settings"))]
    assert wrong == []


def test_the_table_names_every_part_of_the_engine():
    there = {stage_of(name) for name in modules() if name.startswith("cipm.")}
    assert set(stages()) == there


def test_a_stage_imports_only_what_stands_above_it():
    order = stages()
    wrong = [str(i) for i in imports() if within(i.module, tuple(order)) and own(i) and i.target != "cipm"
             and stage_of(i.target) != stage_of(i.module)
             and (stage_of(i.target) not in order or order.index(stage_of(i.target)) > order.index(stage_of(i.module)))]
    assert wrong == []


def test_no_module_is_in_a_ring():
    edges = {name: set() for name in modules()}
    for found in imports():
        if found.target in edges and found.target != found.module:
            edges[found.module].add(found.target)
    assert cycles(edges) == []


def test_a_ring_would_be_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_import_inside_a_function():
    wrong = [str(i) for i in imports() if i.in_function and i.target not in INSIDE_FUNCTIONS.get(i.module, ())]
    assert wrong == []


LIGHT_PROCESSES = {
    "the server": "import frontend.serve; frontend.serve.build()",
    "the API alone": "import backend.app, backend.supervisor",
    "the worker": "import workers.app, workers.worker, workers.run",
    "a worker's health": "import workers.health",
    "the command line": "import cipm.cli; cipm.cli.parser()",
}


@pytest.mark.parametrize("process", LIGHT_PROCESSES)
def test_these_processes_never_import_torch(process, tmp_path):
    code = f"import sys; {LIGHT_PROCESSES[process]}; print(sorted({{'torch', 'transformers', 'numba'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env=os.environ | {"CIPM_DATA": str(tmp_path)})
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_name_is_its_path():
    assert name_of(ROOT / "cipm" / "load" / "__init__.py") == "cipm.load"
