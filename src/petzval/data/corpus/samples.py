"""A training sample as files: picture, caption, and what is known about both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from petzval.data.corpus.buckets import Bucket, fit
from petzval.data.corpus.crop import SUFFIXES, FileSettings, crop, encode, profile_of
from petzval.data.corpus.pictures import PictureReader
from petzval.data.decode import RefusedPicture
from petzval.errors import DataError
from petzval.resolution import Resolution


def sample_files(
    row: Mapping[str, Any], reader: PictureReader, settings: FileSettings
) -> dict[str, bytes]:
    """Names and contents of a sample's three files, all under the picture's id.

    Args:
        row: of `petzval.data.corpus.shard_plan.ROW`.
        reader: opens its picture.
        settings: how the picture is stored.

    Raises:
        DataError: the picture can no longer be read as it was imported.
    """
    try:
        data = reader.read(row)
        decoded = reader.decode(data, row["member"] or row["path"])
    except RefusedPicture as error:
        raise DataError(
            f"{row['path']} {row['member']}".strip() + f" cannot be read any more: {error.reason}",
            "put the file back as it was when it was imported",
        ) from error
    base = int(row["bucket"].partition("/")[0])
    bucket = Bucket(base, Resolution(row["bucket_height"], row["bucket_width"]))
    fitted = fit(decoded.height, decoded.width, bucket)
    picture = encode(crop(decoded, fitted, profile_of(data, decoded.form)), settings)
    record = {
        "id": row["id"],
        "source": row["source"],
        "licence": row["licence"],
        "split": row["split"],
        "bucket": row["bucket"],
        "height": decoded.height,
        "width": decoded.width,
        "crop": [round(edge, 3) for edge in fitted.box],
        "crop_loss": round(fitted.crop_loss, 6),
        "caption_kind": row["caption_kind"],
        "caption_model": row["caption_model"],
        "metadata": _metadata(row["metadata"]),
    }
    told = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    name = row["id"]
    return {
        f"{name}.{SUFFIXES[settings.form]}": picture,
        f"{name}.txt": row["text"].encode(),
        f"{name}.json": told.encode(),
    }


def _metadata(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}
