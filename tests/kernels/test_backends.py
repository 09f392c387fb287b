"""Back ends: what is here, what is chosen away, and what counts as memory that ran out."""

from __future__ import annotations

import errno
import resource
import sys
from contextlib import nullcontext
from inspect import unwrap as unchecked
from pathlib import Path

import pytest
import torch

from petzval.inference.compile import lacking
from petzval.inference.device import choose_dtype
from petzval.kernels import backends, dispatch, varlen

CPU = torch.device("cpu")


def test_the_cpu_is_always_a_device() -> None:
    assert backends.devices()[-1] == CPU
    assert backends.present(CPU)
    assert not backends.present(torch.device("cpu", 1))
    assert not backends.present(torch.device("meta"))
    assert backends.backend_name(CPU) == "CPU"
    assert backends.product_name(CPU) == ""
    free, whole = backends.memory_info(CPU)
    assert 0 < free < whole
    assert 0 < backends.resident_bytes() <= backends.peak_resident_bytes() < whole
    backends.synchronise(CPU)
    backends.give_back(CPU)


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_freed_memory_is_kept_for_the_next_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in pages that the system clears for a block that was there a moment ago."""

    def cleared() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt  # whatever others do
        for _ in range(8):
            torch.ones(12_000_000)  # 48 MB
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    try:
        if not backends.keep_heap(True):
            pytest.skip("this C library cannot be told")
        cleared()
        assert cleared() < 100
    finally:
        backends.keep_heap(False)
        backends.trim_heap()
    assert cleared() >= 100
    monkeypatch.setenv(backends.HEAP_SWITCH, "0")
    assert not backends.keep_heap(True)


def test_a_containers_limit_is_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's memory says nothing where the kernel ends what takes more than its share."""
    forms = ((str(tmp_path), "memory.max", "memory.current", "inactive_file"),)
    monkeypatch.setattr(backends, "_CONTAINERS", forms)
    _, host = backends.memory_info(CPU)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 200000\n")
    assert backends.memory_info(CPU)[1] == host
    (tmp_path / "memory.max").write_text("900000\n")
    assert backends.memory_info(CPU) == (400_000, 900_000)
    (tmp_path / "memory.current").write_text("2000000\n")
    assert backends.memory_info(CPU)[0] == 0


def test_what_is_lacking_is_told_with_what_runs_instead() -> None:
    assert "streams" in backends.lacks(CPU)
    assert "complex numbers" in backends.lacks(torch.device("mps"))
    kernels = {c.operation: c.kernel for c in dispatch.describe(torch.device("mps"))}
    assert kernels["rotary positions"] == "plain products"
    assert {c.operation: c.kernel for c in dispatch.describe(CPU)}["rotary positions"] == (
        "complex product"
    )


def _cards(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """As if these NVIDIA cards were here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capabilities[device.index or 0]
    )


def test_a_card_without_bfloat16_takes_scaled_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    _cards(monkeypatch, (7, 5))
    device = torch.device("cuda")
    assert backends.half_dtype(device) == torch.float16
    assert choose_dtype("auto", device) == torch.float16
    assert choose_dtype("auto", CPU) == torch.float32
    kernels = {c.operation: c.kernel for c in dispatch.describe(device)}
    assert kernels["block products"] == "float16, scaled by powers of two"


def test_each_of_two_cards_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _cards(monkeypatch, (8, 6), (6, 1))
    newer, older = torch.device("cuda", 0), torch.device("cuda", 1)
    assert "bfloat16" not in backends.lacks(newer)
    assert choose_dtype("auto", older) == torch.float16
    assert {"bfloat16", "float8"} <= set(backends.lacks(older))


def test_cards_that_are_not_here_are_taken_for_recent_ones() -> None:
    for kind in backends.ACCELERATORS:
        if backends.present(torch.device(kind)):
            continue
        assert backends.half_dtype(torch.device(kind)) == torch.bfloat16
        assert backends.memory_info(torch.device(kind)) == (0, 0)


def test_intels_cards_say_whether_they_have_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", supported)
    assert backends.half_dtype(torch.device("xpu")) == torch.float16


def test_old_cards_and_rocm_run_packed_samples_without_what_they_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No crash in a compiler that does not know the card: the samples one by one."""
    monkeypatch.setattr(backends, "find_spec", lambda name: object())
    pascal, turing, ampere = (
        torch.device("cuda", 0),
        torch.device("cuda", 1),
        torch.device("cuda", 2),
    )
    _cards(monkeypatch, (6, 1), (7, 5), (8, 0))
    ways = [varlen.choose(card, torch.float16)[0] for card in (pascal, turing, ampere)]
    assert ways == ["one sample at a time", "flex_attention", "varlen_attn"]
    assert lacking(turing) is None
    assert lacking(pascal) == "torch's compiler needs compute capability 7.0"
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert varlen.choose(turing, torch.float16)[0] == "one sample at a time"
    assert lacking(ampere) == "triton is not installed"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert varlen.choose(ampere, torch.bfloat16)[0] == "one sample at a time"
    assert backends.backend_name(ampere) == "ROCm"
    assert "bfloat16" not in backends.lacks(ampere)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8"), True),
        (RuntimeError("level_zero: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"), True),
        (RuntimeError("Failed to allocate private MTLBuffer for size 9663676416"), True),
        (RuntimeError("Invalid buffer size: 24.00 GiB"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_say_that_memory_ran_out(error: BaseException, expected: bool) -> None:
    assert backends.is_out_of_memory(error) is expected


def test_launches_by_hand_go_to_the_device_of_their_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Elsewhere:
        is_cuda = True

        def get_device(self) -> int:
            return 1

    asked: list[int] = []

    def device(index: int) -> nullcontext[None]:
        asked.append(index)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", device)
    for current in (1, 0):
        monkeypatch.setattr(torch.cuda, "current_device", lambda current=current: current)
        with unchecked(backends.on_device)(Elsewhere()):
            pass
    with backends.on_device(torch.ones(1)):
        pass
    assert asked == [1]
