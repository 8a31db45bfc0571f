# SPDX-License-Identifier: MIT
"""The help of the command line: it is there at once, and its examples are command lines that the parser takes."""

import shlex
import subprocess
import sys

import pytest

import halotile
from halotile.cli import main
from halotile.cli.parser import COMMANDS, new_parser

HEAVY = ("numpy", "torch", "pyvips", "tqdm", "matplotlib", "inspect", "dataclasses")


def modules_after(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("first", ["import halotile", "import halotile.cli as c; c.main(['--help'])"])
def test_nothing_that_takes_time_is_imported(first):
    code = f"import sys\ntry:\n    {first}\nexcept SystemExit:\n    pass\nprint(*sys.modules)"
    found = modules_after(code)
    assert "halotile" in found
    assert not found & set(HEAVY)


def test_every_public_name_is_there_when_it_is_asked_for():
    for name in halotile.__all__:
        assert getattr(halotile, name) is getattr(halotile, name)
        assert name in dir(halotile)
    with pytest.raises(AttributeError, match="'restore_tild'"):
        _ = halotile.restore_tild


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_it_takes(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    told = capsys.readouterr().out
    assert len(COMMANDS[command].examples) >= 1
    for line, what in COMMANDS[command].examples:
        assert f"  {line}\n      {what}\n" in told
        program, *arguments = shlex.split(line)
        assert program == "halotile" and arguments[0] == command
        assert callable(new_parser().parse_args(arguments).run)
