"""Run by `test_stages`: works on a corpus, and says on stdout whenever a part is done."""

from __future__ import annotations

import sys
from pathlib import Path

from petzval.data.corpus.filters import Measure
from petzval.data.corpus.importing import import_source
from petzval.data.corpus.manifest import Corpus
from petzval.data.corpus.sources import FolderSource
from petzval.data.corpus.stages import run_stage

if __name__ == "__main__":
    what, folder, argument = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    corpus = Corpus.open(folder)

    def say(stage: str, done: int, total: int) -> None:
        """One line a part."""
        print(done, flush=True)

    if what == "import":
        import_source(corpus, FolderSource(Path(argument)), progress=say)
    elif what == "ray":
        run_stage(corpus, Measure(), engine="ray", workers=2, report=say)
    else:
        run_stage(corpus, Measure(), workers=int(argument), report=say)
