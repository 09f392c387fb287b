"""Back ends: what is here, what is chosen away, and what counts as memory that ran out."""

from __future__ import annotations

from contextlib import nullcontext
from inspect import unwrap as unchecked

import pytest
import torch

from petzval.inference.device import choose_dtype
from petzval.kernels import backends, dispatch

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


def test_what_is_lacking_is_told_with_what_runs_instead() -> None:
    assert "streams" in backends.lacks(CPU)
    assert "complex numbers" in backends.lacks(torch.device("mps"))
    kernels = {c.operation: c.kernel for c in dispatch.describe(torch.device("mps"))}
    assert kernels["rotary positions"] == "plain products"
    assert {c.operation: c.kernel for c in dispatch.describe(CPU)}["rotary positions"] == (
        "complex product"
    )


def test_a_card_without_bfloat16_takes_scaled_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(including_emulation: bool = True) -> bool:
        del including_emulation
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", no)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))  # type: ignore[misc]
    device = torch.device("cuda")
    assert backends.half_dtype(device) == torch.float16
    assert choose_dtype("auto", device) == torch.float16
    assert choose_dtype("auto", CPU) == torch.float32
    kernels = {c.operation: c.kernel for c in dispatch.describe(device)}
    assert kernels["block products"] == "float16, scaled by powers of two"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"), True),
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
        with unchecked(backends.on_device_of)(Elsewhere()):
            pass
    with backends.on_device_of(torch.ones(1)):
        pass
    assert asked == [1]
