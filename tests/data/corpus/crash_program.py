"""Run by `test_stages`: works on a corpus, and says on stdout whenever a part is done."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pyarrow as pa

from petzval.data.corpus.filters import Measure
from petzval.data.corpus.importing import import_source
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.pictures import PictureReader
from petzval.data.corpus.sources import FolderSource
from petzval.data.corpus.stages import run_stage

STILL_SECONDS = 20.0
"""That it stands still in the middle of its work, for whoever wants to end it there."""


class SlowMeasure(Measure):
    """The same stage, which stands still after the first two parts, of four pictures each."""

    def run(self, rows: pa.Table, pictures: PictureReader) -> pa.Table:
        """The same columns, later."""
        first = int(Path(rows["path"][0].as_py()).stem)
        time.sleep(0.1 if first < 8 else STILL_SECONDS)
        return Measure.run(self, rows, pictures)


if __name__ == "__main__":
    # Whoever runs the tests in the background of a shell has Ctrl-C ignored for all of them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    what, folder, argument = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    corpus = Corpus.open(folder)

    def say(stage: str, done: int, total: int) -> None:
        """One line a part."""
        print(done, flush=True)
        time.sleep(STILL_SECONDS if what == "import" and done == 10 else 0.0)

    if what == "import":
        import_source(corpus, FolderSource(Path(argument)), progress=say)
    elif what == "ray":
        run_stage(corpus, Measure(), engine="ray", workers=2, report=say)
    else:
        run_stage(corpus, SlowMeasure(), workers=int(argument), report=say)
