"""The part of pyarrow.parquet that is used here."""

from pathlib import Path
from typing import Any

from pyarrow import Table

def read_table(
    source: Any,
    *,
    columns: list[str] | None = None,
    partitioning: str | None = "hive",
    use_threads: bool = True,
) -> Table: ...
def write_table(
    table: Table,
    where: str | Path | Any,
    *,
    compression: str = "snappy",
    version: str = "2.6",
    row_group_size: int | None = None,
) -> None: ...
def __getattr__(name: str) -> Any: ...
