"""Rows that survive crashes, and pictures that can be looked at."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from petzval.training import metrics
from petzval.training.metrics import MetricsLog, read_metrics
from petzval.training.pictures import grid, save_grid
from tests.training.events import pictures, scalars


def test_rows_of_a_future_are_dropped_on_resuming(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, events=False)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 40, "lo')
    MetricsLog(tmp_path, step=20, events=False).write(21, {"loss": 9.0})
    assert read_metrics(log.path) == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 2.0},
        {"step": 21, "loss": 9.0},
    ]


def test_a_run_that_dies_while_it_opens_its_log_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path, events=False)
    log.write(1, {"loss": 0.5})

    def dying(path: Path, text: str, **options: str) -> int:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", dying)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(tmp_path, step=1, events=False)
    assert read_metrics(log.path) == [{"step": 1, "loss": 0.5}]


def test_rows_are_json_also_where_a_number_is_not_finite(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, events=False)
    log.write(1, {"loss": float("nan"), "grad_norm": float("inf"), "seconds": 2.0})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    row = json.loads(log.path.read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "grad_norm": None, "seconds": 2.0}


class Recorder:
    """Stands in for an event writer."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.rows.append((tag, scalar_value, global_step))

    def add_image(self, tag: str, img_tensor: object, global_step: int, **form: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_events_get_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(metrics, "_open_events", lambda folder, step: recorder)  # pyright: ignore[reportUnknownLambdaType,reportUnknownArgumentType]
    MetricsLog(tmp_path).write(3, {"loss": 0.5})
    assert recorder.rows == [("loss", 0.5, 3)]


def test_tensorboard_reads_numbers_and_pictures(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(3, {"loss": 0.5})
    log.write(6, {"loss": 0.25, "mfu": 0.5})
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 8, 12)
    save_grid(tmp_path / "grids" / "a.png", [red], 1)
    log.show(6, "grid", tmp_path / "grids" / "a.png")
    log.close()
    assert scalars(tmp_path, "loss") == [(3, 0.5), (6, 0.25)]
    [(step, shown)] = pictures(tmp_path, "grid")
    assert step == 6
    with Image.open(BytesIO(shown)) as image:
        assert (image.size, image.getpixel((0, 0)), image.getpixel((8, 8))) == (
            (20, 16), (255, 255, 255), (255, 0, 0),
        )  # fmt: skip


def test_a_grid_of_pictures_of_several_sizes(tmp_path: Path) -> None:
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, 16, 16)
    blue = torch.tensor([-1.0, -1.0, 2.0])[:, None, None].expand(3, 8, 24)
    picture = grid([red, blue, red], 2, gap=4)
    assert picture.size == (2 * 28 + 4, 2 * 20 + 4)
    assert picture.getpixel((12, 12)) == (255, 0, 0)
    assert picture.getpixel((44, 12)) == (0, 0, 255)
    save_grid(tmp_path / "grids" / "a.png", [red], 1)
    with Image.open(tmp_path / "grids" / "a.png") as stored:
        assert stored.size == (24, 24)


def test_a_grid_that_is_cut_short_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning draws its first grid where there is none yet, and never again."""

    def dying(image: Image.Image, path: Path, *form: str) -> None:
        path.write_bytes(b"\x89PNG\r\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", dying)
    path = tmp_path / "grids" / "00000000.png"
    with pytest.raises(KeyboardInterrupt):
        save_grid(path, [torch.zeros(3, 8, 8)], 1)
    assert not path.exists()
    assert not list(path.parent.glob("*.png")), "nothing a reader of pictures would find"
