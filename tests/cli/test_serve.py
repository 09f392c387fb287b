from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest

from petzval.cli import serve
from tests.cli.conftest import Run
from tests.support import PATIENCE, TINY_CHECKPOINT, until


def test_keys_are_made_listed_and_revoked(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "studio"
    code, key, _ = run("serve", "keys", "add", "Ada", "--data", data, "--max-steps", "5")
    assert code == 0 and key.startswith("pz-")
    id = key.split("-")[1]
    code, listed, _ = run("serve", "keys", "list", "--data", data)
    assert code == 0 and listed.startswith(id) and "valid" in listed and "Ada" in listed
    assert key.strip().split("-", 2)[2] not in listed
    assert run("serve", "keys", "revoke", id, "--data", data)[0] == 0
    assert "revoked" in run("serve", "keys", "list", "--data", data)[1]
    assert '"max_steps": 5' in run("serve", "keys", "list", "--data", data, "--json")[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["keys", "revoke", "nobody"], "there is no key"),
        (["keys", "add", "x", "--weight", "-1"], "weight"),
        (["--lora", "style"], "--lora"),
        (["--model", "nothing"], "unknown model"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
        (["--alias", "=x"], "--alias"),
        (["--memory", "much"], "cannot read 'much' as an amount of memory"),
        (["--memory", "10MB", "--model", str(TINY_CHECKPOINT)], "give --memory "),
        (["--quantise", "int2"], "unknown storage 'int2'"),
    ],
)
def test_a_mistake_is_one_line(run: Run, tmp_path: Path, words: list[str], said: str) -> None:
    code, out, err = run("serve", *words, "--data", tmp_path / "studio")
    assert (code, out) == (2, "")
    assert "error: " in err and said in err


def test_without_its_extra_the_command_says_how_to_get_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petzval.cli.serve.find_spec", lambda name: None)
    for words in ([], ["keys", "list"]):
        code, _, err = run("serve", *words)
        assert code == 2 and "pip install 'petzval[server]'" in err


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """The whole program, with a real pipeline: a picture is drawn, SIGTERM ends it gently."""
    words = ["serve", "--port", "0", "--model", TINY_CHECKPOINT, "--data", tmp_path / "studio"]
    words += ["--memory", "8GB", "--ram", "8GB", "--quantise", "exact"]
    command = [sys.executable, "-m", "petzval", *map(str, words), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            with httpx2.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
                body = {"prompt": "a fox", "size": "64x64", "petzval": {"steps": 1}}
                answer = client.post("/v1/images/generations", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["size"] == "64x64"
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == 0
    assert '"event": "stopped"' in log and "a fox" not in log


def test_the_page_is_opened_where_there_is_a_browser(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def no_browser(address: str) -> bool:
        opened.append(address)
        return False

    monkeypatch.setattr("webbrowser.open", no_browser)
    serve._show("http://127.0.0.1:8000")
    until(lambda: all(thread.name != "petzval-open" for thread in threading.enumerate()))
    said = capsys.readouterr()
    assert opened == ["http://127.0.0.1:8000"]
    assert said.out == "http://127.0.0.1:8000\n"
    assert "there is no browser here" in said.err
