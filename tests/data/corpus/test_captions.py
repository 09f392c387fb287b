from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from petzval.data.corpus.budget import Budget, BudgetLimits
from petzval.data.corpus.captioner import MetadataCaptioner, length_of
from petzval.data.corpus.captions import (
    CaptionRun,
    caption_corpus,
    ledger_path,
    spent_so_far,
)
from petzval.data.corpus.endpoint import (
    INSTRUCTIONS,
    EndpointAddress,
    EndpointCaptioner,
    EndpointSettings,
)
from petzval.data.corpus.filters import Band, BandFilter
from petzval.data.corpus.importing import import_source
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.sources import FolderSource
from petzval.data.corpus.stages import run_stage
from petzval.errors import DataError
from tests.data.corpus.endpoint import (
    COMPLETION_TOKENS,
    KEY,
    PROMPT_TOKENS,
    Endpoint,
    caption_of,
    cleaned_corpus,
    numbered,
    serving,
    write_pictures,
)
from tests.support import until

FAST = EndpointSettings(timeout=60.0, backoff=0.01, max_attempts=4)
TOKENS = PROMPT_TOKENS + COMPLETION_TOKENS


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as found:
        yield found


def ask(
    corpus: Corpus,
    endpoint: Endpoint,
    settings: EndpointSettings = FAST,
    budget: Budget | None = None,
    **options: Any,
) -> CaptionRun:
    address = EndpointAddress(base_url=endpoint.url, model="seer", api_key=KEY)
    return caption_corpus(corpus, EndpointCaptioner(address, settings, budget), **options)


def captions(corpus: Corpus, mode: str = "dense") -> dict[int, dict[str, Any]]:
    return numbered(corpus, ("text", "status", "reason", "length", "model"), f"captions-{mode}")


def files(corpus: Corpus) -> dict[str, bytes]:
    return {
        path.relative_to(corpus.folder).as_posix(): path.read_bytes()
        for path in corpus.folder.rglob("*")
        if path.is_file()
    }


def test_every_picture_gets_its_own_caption_once(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 10)
    run = ask(corpus, endpoint)
    assert run.counts == {"caption": 10} and run.num_asked == 10 and not run.stopped
    assert (run.num_whole, run.num_parts) == (3, 3)
    assert run.spent == (10 * PROMPT_TOKENS, 10 * COMPLETION_TOKENS)
    found = captions(corpus)
    assert {n: row["text"] for n, row in found.items()} == {n: caption_of(n) for n in range(10)}
    assert {row["model"] for row in found.values()} == {"seer"}
    assert sorted(endpoint.numbers()) == list(range(10))

    before = files(corpus)
    again = ask(corpus, endpoint)
    assert again.num_asked == 0 and again.counts == {"caption": 10}
    assert files(corpus) == before and len(endpoint.heard) == 10


def test_what_is_sent(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 2)
    ask(corpus, endpoint, EndpointSettings(max_side=64, backoff=0.0))
    [heard, other] = endpoint.heard
    assert heard.instruction == INSTRUCTIONS["dense"] and heard.body["model"] == "seer"
    assert heard.body["max_tokens"] == 900
    assert heard.size == (40 + heard.number, 40), "small pictures are not enlarged"
    assert heard.headers["authorization"] == f"Bearer {KEY}"
    assert heard.headers["idempotency-key"] != other.headers["idempotency-key"]
    assert not any(KEY.encode() in data for data in files(corpus).values())


TROUBLE = ("429", "500", "503", "drop", "html", "malformed", "strange", "no choices")


def test_trouble_that_passes_is_waited_out(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, len(TROUBLE))
    endpoint.orders = {number: [what, what] for number, what in enumerate(TROUBLE)}
    run = ask(corpus, endpoint)
    assert run.counts == {"caption": len(TROUBLE)}
    for number in range(len(TROUBLE)):
        assert endpoint.numbers().count(number) == 3
        keys = {h.headers["idempotency-key"] for h in endpoint.heard if h.number == number}
        assert len(keys) == 1, "the same question, the same key"


@pytest.mark.parametrize("what", ["hang", "drip"])
def test_an_answer_that_does_not_come_is_given_up(
    tmp_path: Path, endpoint: Endpoint, what: str
) -> None:
    corpus = cleaned_corpus(tmp_path, 2)
    endpoint.orders = {1: [what]}
    start = time.monotonic()
    run = ask(corpus, endpoint, EndpointSettings(timeout=1.0, backoff=0.01, max_attempts=20))
    # The hanging one would let go after 30 seconds, the dripping one never.
    assert run.counts == {"caption": 2} and time.monotonic() - start < 25
    # The endpoint may have worked on it, so the attempt counts as if it had.
    assert sum(run.spent) > 2 * TOKENS


def test_a_wait_that_is_asked_for_is_kept_by_all(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 6)
    endpoint.orders = {0: ["429"]}
    ask(corpus, endpoint, concurrency=1)
    first, *others = endpoint.heard
    assert first.number == 0 and len(others) == 6
    assert min(each.moment for each in others) - first.moment >= 0.39


WITHOUT_CAPTION = {
    "refusal": "refusal",
    "marked refusal": "refusal",
    "withheld": "refusal",
    "filtered": "refusal",
    "empty": "empty",
    "one long sentence": "overlong",
    "400": "rejected",
}


def test_answers_that_are_no_captions_are_kept_apart(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, len(WITHOUT_CAPTION) + 1)
    endpoint.orders = {number: [what] for number, what in enumerate(WITHOUT_CAPTION)}
    ask(corpus, endpoint)
    found = captions(corpus)
    for number, status in enumerate(WITHOUT_CAPTION.values()):
        assert found[number]["status"] == status and found[number]["text"] == ""
        assert found[number]["reason"] and KEY not in found[number]["reason"]
    assert found[len(WITHOUT_CAPTION)]["status"] == "caption"
    endpoint.heard.clear()
    again = ask(corpus, endpoint)
    assert endpoint.numbers() == [list(WITHOUT_CAPTION).index("400")], "the others are settled"
    assert again.counts["caption"] == 2


def test_answers_that_are_mended(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 3)
    endpoint.orders = {0: ["endless"], 1: ["cut off"], 2: ["half a character"]}
    assert ask(corpus, endpoint).counts == {"caption": 3}
    found = captions(corpus)
    assert len(found[0]["text"].split()) == 498 and found[0]["text"].endswith("grey.")
    assert "shortened from 1202 words" in found[0]["reason"]
    assert found[1]["text"] == "A grey field." and "limit of tokens" in found[1]["reason"]
    assert found[2]["text"] == "A grey ? field with lines."


def test_a_picture_that_never_gets_an_answer_is_asked_about_again_next_time(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    corpus = cleaned_corpus(tmp_path, 3)
    endpoint.orders = {1: ["500"] * 4}
    run = ask(corpus, endpoint)
    assert run.counts == {"caption": 2, "failed": 1} and run.num_whole == 1
    assert captions(corpus)[1]["reason"] == "status 500: oh no"
    assert ask(corpus, endpoint).counts == {"caption": 3}
    assert endpoint.numbers().count(1) == 5 and endpoint.numbers().count(0) == 1


@pytest.mark.parametrize(
    ("what", "message"),
    [("401", "the key is not accepted"), ("404", "not found"), ("no credit", "no credit is left")],
)
def test_what_no_picture_can_get_past_ends_the_run(
    tmp_path: Path, endpoint: Endpoint, what: str, message: str
) -> None:
    corpus = cleaned_corpus(tmp_path, 9)
    endpoint.orders = {4: [what]}
    with pytest.raises(DataError, match=message) as caught:
        ask(corpus, endpoint, concurrency=1)
    assert KEY not in str(caught.value) and "OPENAI_BASE_URL" in caught.value.hint
    assert len(endpoint.heard) == 5
    assert ask(corpus, endpoint).counts == {"caption": 9} and len(endpoint.heard) == 10


def test_an_endpoint_that_is_down_is_given_up_soon(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 12)
    endpoint.for_all = "500"
    quick = EndpointSettings(backoff=0.0, max_attempts=2, max_failures=3)
    with pytest.raises(DataError, match="no answer for 3 pictures in a row.*status 500: oh no"):
        ask(corpus, endpoint, quick, concurrency=1)
    assert len(endpoint.heard) == 6
    endpoint.for_all = "400"
    with pytest.raises(DataError, match="status 400"):
        ask(corpus, endpoint, quick, concurrency=1)


def test_nobody_listens(tmp_path: Path) -> None:
    corpus = cleaned_corpus(tmp_path, 2)
    quick = EndpointSettings(backoff=0.0, max_attempts=1, max_failures=1)
    with socket.socket() as deaf:  # holds its port, so that nobody else can come to listen there
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"
        address = EndpointAddress(base_url=url, model="seer", api_key=KEY)
        with pytest.raises(DataError, match="the connection failed"):
            caption_corpus(corpus, EndpointCaptioner(address, quick))


@pytest.mark.parametrize("concurrency", [1, 6])
def test_a_budget_in_tokens_is_never_exceeded(
    tmp_path: Path, endpoint: Endpoint, concurrency: int
) -> None:
    corpus = cleaned_corpus(tmp_path, 10)
    settings = EndpointSettings(max_completion_tokens=COMPLETION_TOKENS, backoff=0.01)
    limits = BudgetLimits(tokens=5 * TOKENS + 100, first_prompt=PROMPT_TOKENS)
    run = ask(corpus, endpoint, settings, Budget(limits), concurrency=concurrency)
    assert run.stopped and run.num_asked == 5 and sum(run.spent) == 5 * TOKENS
    assert run.num_whole <= 1 and not corpus.columns_path("captions-dense", 2).exists()

    spent = spent_so_far(corpus)
    same = ask(corpus, endpoint, settings, Budget(limits, spent), concurrency=concurrency)
    assert same.stopped and same.num_asked == 0, "the limit is for all runs together"
    more = Budget(BudgetLimits(tokens=100 * TOKENS), spent)
    assert ask(corpus, endpoint, settings, more).counts == {"caption": 10}
    assert sorted(endpoint.numbers()) == list(range(10))


def test_what_was_paid_in_vain_is_known_to_the_next_run(tmp_path: Path, endpoint: Endpoint) -> None:
    """An attempt that ended in silence counts, also where the budget allows no second one."""
    corpus = cleaned_corpus(tmp_path, 2)
    endpoint.orders = {0: ["drop"] * 9, 1: ["drop"] * 9}
    settings = EndpointSettings(max_completion_tokens=COMPLETION_TOKENS, backoff=0.01)
    limits = BudgetLimits(tokens=TOKENS + 100, first_prompt=PROMPT_TOKENS)
    run = ask(corpus, endpoint, settings, Budget(limits), concurrency=1)
    assert run.stopped and len(endpoint.heard) == 1
    assert spent_so_far(corpus) == (PROMPT_TOKENS, COMPLETION_TOKENS) == run.spent
    again = ask(corpus, endpoint, settings, Budget(limits, run.spent), concurrency=1)
    assert again.stopped and len(endpoint.heard) == 1, "the limit is for all runs together"


def test_a_budget_in_money(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 6)
    limits = BudgetLimits(money=0.0011, prompt_price=1.0, completion_price=4.0, first_prompt=300)
    settings = EndpointSettings(max_completion_tokens=40, backoff=0.0)
    budget = Budget(limits)
    run = ask(corpus, endpoint, settings, budget, concurrency=1)
    assert run.stopped and run.num_asked == 2  # 0.00046 each
    assert budget.cost == pytest.approx(0.00092)
    with pytest.raises(DataError, match="needs prices"):
        BudgetLimits(money=1.0)


def test_an_endpoint_that_does_not_count_is_counted_at_most(
    tmp_path: Path, endpoint: Endpoint
) -> None:
    corpus = cleaned_corpus(tmp_path, 2)
    endpoint.for_all = "no usage"
    run = ask(corpus, endpoint, FAST)
    assert run.spent == (2 * 2000, 2 * 900)


def test_modes(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 16)
    ask(corpus, endpoint, mode="mixed")
    mixed = captions(corpus, "mixed")
    lengths = [row["length"] for row in mixed.values()]
    assert 3 <= lengths.count("brief") <= 13
    told = {h.number: h.instruction for h in endpoint.heard}
    assert all(told[n] == INSTRUCTIONS[row["length"]] for n, row in mixed.items())
    assert len(endpoint.heard) == 16
    ask(corpus, endpoint, mode="dense")
    ask(corpus, endpoint, mode="brief")
    assert len(endpoint.heard) == 32, "each length is paid for once, whatever the mode"
    assert {row["length"] for row in captions(corpus, "brief").values()} == {"brief"}
    assert captions(corpus, "mixed") == mixed


def test_half_of_many_are_brief() -> None:
    lengths = [length_of(f"{number:064x}", "mixed") for number in range(4000)]
    assert 0.47 < lengths.count("brief") / 4000 < 0.53


PROGRAM = """
import sys
from pathlib import Path
from petzval.data.corpus.captions import caption_corpus
from petzval.data.corpus.endpoint import EndpointAddress, EndpointCaptioner
from petzval.data.corpus.manifest import Corpus
address = EndpointAddress(base_url=sys.argv[2], model="seer", api_key="none")
caption_corpus(Corpus.open(Path(sys.argv[1])), EndpointCaptioner(address), concurrency=3)
"""


def test_killed_and_run_again_it_pays_for_nothing_twice(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 16, rows_per_part=6)
    endpoint.orders = {number: ["hang"] for number in range(5, 16)}
    command = [sys.executable, "-c", PROGRAM, str(corpus.folder), endpoint.url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ.copy())
    ledger = ledger_path(corpus, 0)

    def has_begun() -> bool:
        assert process.poll() is None
        return ledger.is_file() and ledger.read_bytes().count(b"\n") >= 4

    until(has_begun)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # As a machine without power leaves it: the last line half on the disk.
    whole = ledger.read_bytes()
    lines = whole.count(b"\n")
    ledger.write_bytes(whole + b'{"completion_tokens": 4')
    settled = {
        json.loads(line)["id"]
        for path in sorted(ledger.parent.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
        if line.endswith(b"}")
    }
    endpoint.heard.clear()
    endpoint.orders = {}
    run = ask(corpus, endpoint)
    assert run.counts == {"caption": 16}
    by_number = {
        int(Path(row["path"]).stem): row["id"]
        for part in corpus.parts()
        for row in corpus.read(part).to_pylist()
    }
    # What the killed program sent, with no key, may be heard only now.
    ours = [h for h in endpoint.heard if h.headers["authorization"] == f"Bearer {KEY}"]
    asked = [by_number[h.number] for h in ours]
    assert not settled & set(asked) and len(settled) >= lines
    assert sorted([*settled, *asked]) == sorted(by_number.values())
    assert ledger.read_bytes().startswith(whole)
    # The half line stays where nothing of the part was left to ask for.
    lines_now = [line for line in ledger.read_bytes().splitlines() if line.endswith(b"}")]
    ids = [json.loads(line)["id"] for line in lines_now]
    assert len(ids) == len(set(ids)) == 6


def test_a_damaged_ledger_is_not_written_over(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 3)
    ask(corpus, endpoint)
    ledger = ledger_path(corpus, 0)
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(lines[0] + b"\xff\xfe\n" + lines[2])
    with pytest.raises(DataError, match=r"part-00000\.jsonl:2: not an entry"):
        ask(corpus, endpoint)
    assert ledger.read_bytes().count(b"\n") == 3


def test_a_corpus_that_was_not_cleaned(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 2)
    corpus = Corpus.create(tmp_path / "corpus", "raw")
    import_source(corpus, FolderSource(tmp_path / "pictures"))
    with pytest.raises(DataError, match="part 0 has not been cleaned") as caught:
        caption_corpus(corpus, MetadataCaptioner())
    assert f"petzval data clean {corpus.folder}" in caught.value.hint


def test_rows_that_are_dropped_or_gone_are_not_paid_for(tmp_path: Path, endpoint: Endpoint) -> None:
    corpus = cleaned_corpus(tmp_path, 4)
    run_stage(corpus, BandFilter(name="area", settings=Band(minimum=float(40 * 42))))
    (tmp_path / "pictures" / "003.png").unlink()
    run = ask(corpus, endpoint)
    assert run.counts == {"caption": 1, "dropped": 2, "unreadable": 1}
    assert endpoint.numbers() == [2]
    assert captions(corpus)[3]["reason"] == "the file is gone"


def test_mistakes_in_settings(tmp_path: Path) -> None:
    corpus = cleaned_corpus(tmp_path, 1)
    with pytest.raises(DataError, match="concurrency is 0"):
        caption_corpus(corpus, MetadataCaptioner(), concurrency=0)
    with corpus.writing(), pytest.raises(DataError, match="another program is writing"):
        caption_corpus(corpus, MetadataCaptioner())
