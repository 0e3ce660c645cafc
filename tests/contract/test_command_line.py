"""Every command has help, is in the README, and refuses what it cannot use with one line and status 2."""

from __future__ import annotations

import argparse

import pytest
from imports import ROOT

from cipm.cli import main, parser
from cipm.options import AnalysisOptions

README = (ROOT / "README.md").read_text()
COMMANDS = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)).choices


def test_the_commands_are_those_promised():
    assert set(COMMANDS) >= {"analyze", "reorganize", "restore", "verify", "inspect", "serve", "demo"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_in_the_readme(name, capsys):
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0 and f"usage: cipm {name}" in capsys.readouterr().out
    assert f"cipm {name}" in README


def test_every_option_is_a_flag_of_analyze(capsys):
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in AnalysisOptions.model_fields)


@pytest.mark.parametrize("arguments", [
    ["inspect", "MISSING"], ["analyze", "MISSING", "MISSING", "--out", "OUT"], ["reorganize", "MISSING", "--out", "OUT"],
    ["restore", "MISSING", "--out", "OUT"], ["verify", "MISSING", "MISSING"]], ids=lambda arguments: arguments[0])
def test_a_missing_file_is_one_line_and_status_2(arguments, tmp_path, capsys):
    places = {"MISSING": str(tmp_path / "missing.pt2"), "OUT": str(tmp_path / "out")}
    assert main([places.get(word, word) for word in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "missing.pt2" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_bad_option_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "model.pt2").write_bytes(b"x")
    assert main(["analyze", str(tmp_path / "model.pt2"), str(tmp_path / "model.pt2"), "--out", str(tmp_path / "out"),
                 "--max-rows", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "max_rows" in said
    assert not (tmp_path / "out").exists()
