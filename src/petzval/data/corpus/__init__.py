"""From raw pictures to training shards: a manifest, and stages that append columns to it.

A corpus is a folder (`manifest.Corpus`); a stage (`stages.Stage`) reads rows and writes columns for
them, part by part, on processes of one machine or on Ray. In their order:

    pixels                  decodes once: readable, refusal, width, height, format, flags, and the
                            raw measures clarity, entropy, luminance
    decodes … luminance     the paper's cleaning steps: score, keep (null: not run), reason
    embedding               vector
    duplicates              score, keep, reason, cluster
    captions, buckets, …    what is trained on

This package needs the extra `data`.
"""

from __future__ import annotations

from petzval.errors import MissingExtraError

try:
    import pyarrow as _pyarrow
except ImportError as error:
    raise MissingExtraError("pyarrow", "data") from error

del _pyarrow
