from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import petzval
from petzval.cli.main import COMMANDS, EXIT_CODES, main
from tests.cli.conftest import Run


def test_the_menu_lists_every_command_and_the_exit_codes(run: Run) -> None:
    code, out, err = run("--help")
    assert code == 0 and err == ""
    assert all(name in out for name in COMMANDS)
    assert " ".join(out.split()).endswith(EXIT_CODES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_as_the_menu_does(run: Run, name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "Usage: petzval" in out
    entry = getattr(import_module(f"petzval.cli.{name}"), name)
    if callable(entry):
        first = (inspect.getdoc(entry) or "").partition("\n")[0]
        assert set(COMMANDS[name].rstrip(".").split()) & set(first.split())
    else:
        assert all(verb in out for verb in entry)


def test_help_loads_neither_torch_nor_rich() -> None:
    code = (
        "import sys\nfrom petzval.cli.main import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'rich', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version") == (0, f"{petzval.__version__}\n", "")


def test_without_a_command_there_is_the_menu(run: Run) -> None:
    code, out, err = run()
    assert code == 2
    assert "generate" in out + err


def test_an_unknown_command_or_option_is_a_users_mistake(run: Run) -> None:
    code, out, err = run("genrate", "a fox")
    assert (code, out) == (2, "")
    assert "generate" in err
    code, out, err = run("generate", "a fox", "--stps", "4")
    assert (code, out) == (2, "")
    assert "--steps" in err


def test_a_bug_of_ours_is_shown_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("petzval.cli.models.models", broken)
    with pytest.raises(ZeroDivisionError):
        main(["models"])
