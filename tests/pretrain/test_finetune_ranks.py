"""Fine-tuning over two processes against one: the same losses, the same results."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petzval.errors import TrainingError
from petzval.pretrain.finetune import finetune
from petzval.pretrain.layout import TEXT_STREAM
from petzval.training.lora import LoraAdapter, LoraConfig
from petzval.training.metrics import read_metrics
from petzval.training.parallel import Shell
from petzval.training.ranks import Ranks
from tests.pretrain.ranked_finetuning import FULL, LORA, bfloat16_steps, tune
from tests.pretrain.rings import draw_rings
from tests.training.denoising import denoiser
from tests.training.launch import launch, logs


@pytest.fixture(scope="module")
def job(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left in `ranked`, one process in `alone`, and either after the other."""
    root = tmp_path_factory.mktemp("job")
    pictures = draw_rings(root / "rings")
    for name, keys in (("ranked", ["kohya"]), ("alone", [])):
        (root / name).mkdir()
        job = {"model": str(golden_checkpoint), "pictures": str(pictures), "keys": keys}
        (root / name / "job.json").write_text(json.dumps(job))
    # Stopped after two steps by one process, finished by two ranks; and the other way round.
    assert tune(root / "ranked", "extended", LORA, stop_after=2)
    names = ("lora", "full", "first_half", "second_half", "frozen_bfloat16")
    legs = [(2, [name], "never") for name in names]
    codes = launch(root / "ranked", *legs, module="tests.pretrain.ranked_finetuning")
    assert codes == [[0, 0]] * len(legs), logs(root / "ranked")
    assert not tune(root / "ranked", "reduced", LORA)
    assert not tune(root / "alone", "lora", LORA)
    assert not tune(root / "alone", "full", FULL)
    return root


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row]


def assert_close(left: Path, right: Path) -> None:
    expected, found = load_file(left), load_file(right)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert float((tensor.float() - found[name].float()).abs().max()) <= 1e-5, name


@pytest.mark.parametrize("name", ["lora", "reduced", "extended"])
def test_two_processes_train_what_one_does(job: Path, name: str) -> None:
    """Also where one goes on with what two have left, and two with what one has."""
    run, alone = job / "ranked" / name, job / "alone" / "lora"
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert len(losses(alone)) == LORA.num_steps
    assert_close(
        alone / "lora" / "adapter_model.safetensors", run / "lora/adapter_model.safetensors"
    )


def test_the_first_process_alone_speaks_and_writes(job: Path) -> None:
    run = job / "ranked" / "lora"
    second = (job / "ranked" / "rank1.log").read_text()
    assert "step" not in second and "Traceback" not in second
    first = (job / "ranked" / "rank0.log").read_text()
    assert "a LoRA of rank 4 over 2 processes" in first
    assert sorted(os.listdir(run / "grids")) == ["00000000.png", "00000005.png"]
    assert len(os.listdir(run / "latents")) == 4
    assert (run / "lora-kohya.safetensors").is_file()
    assert not [path for path in run.rglob("*") if "partial" in path.name]


def test_all_weights_over_two_processes(job: Path) -> None:
    """The whole checkpoint, too, is that of one process."""
    file = Path("checkpoint") / "transformer" / "diffusion_pytorch_model.safetensors"
    runs = [job / name / "full" for name in ("ranked", "alone")]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)
    assert_close(runs[1] / file, runs[0] / file)


def test_a_lora_beside_frozen_weights_of_another_type(job: Path) -> None:
    told = json.loads((job / "ranked" / "frozen_bfloat16.json").read_text())
    losses, _ = bfloat16_steps(Ranks())
    assert told["moved"]
    assert told["losses"] == pytest.approx(losses, rel=1e-2)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_a_batch_without_text_does_not_reach_is_named(kind: str) -> None:
    model = denoiser()
    if kind == "lora":
        LoraAdapter(model, LoraConfig(rank=2, targets=("transformer_blocks.*", "txt_in")))
    grid = (2, 2)
    noise = torch.randn(1, 4, model.config.in_channels)
    model.velocity(noise, [], torch.tensor([0.5]), grid).sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    unreached = {name for name, parameter in trained.items() if parameter.grad is None}
    shell = Shell(model)
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    shell.drop_idle_gradients(TEXT_STREAM)
    assert {name for name, parameter in trained.items() if parameter.grad is None} == unreached
    assert unreached


def test_more_processes_than_pictures_a_step_are_refused(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    out = job / "refused"
    with pytest.raises(TrainingError, match="4 processes cannot share steps of 3") as caught:
        finetune(str(job), job / "rings", out, dataclasses.replace(LORA, batch_size=3))
    assert "raise the batch size to 4" in caught.value.hint
    assert not out.exists()
