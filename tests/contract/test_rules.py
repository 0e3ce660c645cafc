"""Every rule is in docs/rules.md, with its equation."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cipm.rules import FAMILIES, find_rule, known_ops

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_code_says():
    spec = importlib.util.spec_from_file_location("write_rules", ROOT / "tools" / "write_rules.py")
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert (ROOT / "docs" / "rules.md").read_text() == writer.document(), "run: make docs"


def test_every_rule_has_its_line_and_belongs_to_a_family():
    page = (ROOT / "docs" / "rules.md").read_text()
    assert all(f"`{op}`" in page for op in known_ops())
    assert {rule.__module__ for rule in known_ops().values()} == {family.__name__ for family in FAMILIES}
    assert all(rule.__doc__ for rule in known_ops().values())


def test_overloads_pointwise_tags_and_unknown_ops():
    rules = known_ops()
    assert find_rule("aten.max.dim") is rules["topk"] and find_rule("aten.max.other") is rules["pointwise"]
    assert find_rule("aten.gelu.default") is rules["pointwise"]  # by torch's own tag
    assert find_rule("aten.renorm.default") is None
