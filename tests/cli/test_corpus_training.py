from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from petzval.data.corpus.shard_reader import ShardReader
from petzval.training import loop
from tests.cli.conftest import Run
from tests.data.corpus.endpoint import cleaned_corpus, serving
from tests.data.corpus.ready import raw_corpus, ready_corpus
from tests.pretrain.corpus import make_shards


@pytest.fixture(autouse=True)
def nowhere_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "PETZVAL_CAPTION_MODEL"):
        monkeypatch.delenv(name, raising=False)


def test_text_draws_a_folder_and_goes_on(run: Run, tmp_path: Path) -> None:
    code, out, err = run("data", "text", "texts", "--num", "2", "--base", "128")
    assert (code, out) == (0, "texts\n") and "ja, ko, zh" in err
    assert run("data", "text", "texts", "--num", "3", "--base", "128")[0] == 0
    assert len(list((tmp_path / "texts").rglob("*.png"))) == 3
    code, _, err = run("data", "text", "texts", "--num", "3", "--seed", "1", "--base", "128")
    assert code == 2 and "error: texts holds rendered texts of other settings" in err
    Path("words.txt").write_bytes("café".encode("latin-1"))
    code, _, err = run("data", "text", "more", "--strings", "words.txt")
    assert code == 2 and "words.txt is not UTF-8" in err and "hint: save it as UTF-8" in err
    assert not Path("more").exists()


def test_from_captions_to_a_card(run: Run, tmp_path: Path) -> None:
    corpus = ready_corpus(tmp_path, 6)
    code, out, err = run("data", "caption", corpus.folder, "--by", "metadata", "--mode", "brief")
    assert (code, out.split()) == (0, ["caption", "6"]) and "6 answers in this run" in err
    code, _, err = run("data", "shard", corpus.folder, "--bases", "128")
    assert code == 2 and "several kinds: dense, brief" in err and "--captions" in err
    words = ("data", "shard", corpus.folder, "--bases", "128", "--captions", "brief")
    code, out, err = run(*words, "--out", "shards", "--form", "png", "--held-out", "0.4")
    assert (code, out) == (0, "shards\n") and "6 samples in" in err
    assert len(ShardReader(tmp_path / "shards")) == 6
    code, out, _ = run("data", "card", corpus.folder)
    assert code == 0 and Path(out.strip()).read_text(encoding="utf-8").startswith("# colours")


def test_captions_of_an_endpoint_within_a_budget(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = cleaned_corpus(tmp_path, 3)
    with serving() as endpoint:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key-that-nobody-sees")
        monkeypatch.setenv("PETZVAL_CAPTION_MODEL", "seer")
        words = ("data", "caption", corpus.folder, "--json")
        code, out, err = run(*words, "--budget-tokens", "2899")
        told = json.loads(out)
        assert code == 0 and told["stopped"] and told["asked"] == 0 == len(endpoint.heard)
        assert "raise it to go on" in err
        code, out, err = run(*words)
        told = json.loads(out)
        assert code == 0 and told["counts"] == {"caption": 3} and told["asked"] == 3
        assert told["tokens"] == {"prompt": 900, "completion": 120}
        assert "nobody-sees" not in out + err


def test_what_has_to_run_first_is_named(run: Run, tmp_path: Path) -> None:
    corpus = raw_corpus(tmp_path, 2)
    for command in (("caption", "--by", "metadata"), ("shard", "--captions", "source")):
        code, _, err = run("data", command[0], corpus.folder, *command[1:])
        assert code == 2 and f"petzval data clean {corpus.folder}" in err, err
    code, out, _ = run("data", "card", corpus.folder)
    assert code == 0 and "No step has run" in Path(out.strip()).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("caption", "nowhere", "--by", "metadata"), "holds no corpus"),
        (("caption", "nowhere", "--by", "oracle"), "unknown captioner 'oracle'"),
        (("caption", "nowhere", "--mode", "long"), "unknown mode 'long'"),
        (("shard", "nowhere"), "holds no corpus"),
        (("shard", "nowhere", "--bases", "big"), "cannot read the base sizes 'big'"),
        (("shard", "nowhere", "--bases", "500"), "no buckets for base size 500"),
        (("shard", "nowhere", "--bases", ","), "no base size is given"),
        (("shard", "nowhere", "--form", "gif"), "must be one of"),
        (("card", "nowhere"), "holds no corpus"),
        (("text", "texts", "--base", "500"), "unknown base size 500"),
        (("text", "texts", "--fonts", "nowhere"), "has no fonts"),
        (("text", "texts", "--strings", "nowhere"), "cannot be read"),
    ],
)
def test_mistakes_are_answered_with_one_line(
    run: Run, words: tuple[str, ...], message: str
) -> None:
    code, out, err = run("data", *words)
    assert code == 2 and out == ""
    assert [line for line in err.splitlines() if line.startswith("error: ") and message in line]
    assert not Path("nowhere").exists() and not Path("texts").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("smoke_corpus", "--data", "nowhere"), "nowhere has no shards"),
        (("mini_vae", "--model", "mini"), "mini_vae does not train on shards"),
        (("mini_vae", "--latents", "kept"), "mini_vae does not train on shards"),
        (("lens_base_stage3",), "unknown recipe 'lens_base_stage3'"),
    ],
)
def test_mistakes_of_pretraining_are_one_line(
    run: Run, words: tuple[str, ...], message: str
) -> None:
    code, out, err = run("pretrain", *words, "--out", "never")
    assert code == 2 and out == ""
    assert [line for line in err.splitlines() if line.startswith("error: ") and message in line]
    assert not Path("never").exists() and not Path("kept").exists()


def test_an_interrupted_run_is_not_taken_for_a_whole_one(
    run: Run, tmp_path: Path, golden_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("pretrain", "smoke_corpus", "--data", make_shards(tmp_path), "--out", "run")
    options = ("--model", golden_checkpoint, "--device", "cpu")
    step = loop.training_step

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return step(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", interrupted)
        code, out, err = run(*words, *options)
    assert (code, out) == (143, "") and "the same command goes on" in err
    assert Path("run/checkpoints/step-00000001").is_dir() and not Path("run/checkpoint").exists()
    code, out, err = run(*words, *options)
    assert (code, out) == (0, "run\n") and "resumed at step 1" in err
    assert Path("run/checkpoint").is_dir()


def test_an_endpoint_has_to_be_named(run: Run, tmp_path: Path) -> None:
    corpus = cleaned_corpus(tmp_path, 1)
    code, _, err = run("data", "caption", corpus.folder)
    assert code == 2 and "no caption model is named" in err and "PETZVAL_CAPTION_MODEL" in err


def test_a_limit_in_money_has_prices(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = cleaned_corpus(tmp_path, 1)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("PETZVAL_CAPTION_MODEL", "seer")
    code, _, err = run("data", "caption", corpus.folder, "--budget-money", "5")
    assert code == 2 and "needs prices" in err
