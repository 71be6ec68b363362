"""The small Mixture of Experts that students train: one command, on one process or several, that can be stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ichimon import corpus, moe, train
from ichimon.moe import PRESETS
from ichimon.train import TrainingError

FAST = PRESETS["fast"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run() -> moe.Run:
    return moe.run("fast", quiet=True, device="cpu")


def command(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, "-m", "ichimon.train", *arguments], capture_output=True, text=True, env=ONE_THREAD
    )


def test_it_learns_and_counts_what_it_did(run: moe.Run) -> None:
    assert run.history.losses[-1] < run.history.losses[0]
    assert run.history.tokens == FAST.training.steps * FAST.batch * FAST.length
    assert run.flops == run.history.tokens * moe.flops_per_token(run.model, FAST)
    assert run.history.peak_bytes > 0


def test_the_share_of_each_expert_is_seen_at_each_evaluation(run: moe.Run) -> None:
    assert [step for step, _ in run.shares] == [10, 20]
    for _, rows in run.shares:
        assert [len(row) for row in rows] == [FAST.n_experts] * FAST.n_layers
        assert all(sum(row) == pytest.approx(1) for row in rows)


def test_dense_and_mixture_cost_the_same_but_for_the_router() -> None:
    for preset in PRESETS.values():
        with torch.device("meta"):
            costs = [moe.flops_per_token(moe.build(preset, kind), preset) for kind in ("moe", "dense")]
        assert costs[0] - costs[1] == 6 * preset.n_layers * preset.d_model * preset.n_experts


def test_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(FAST.vocabulary, (2, FAST.length))
    dense = moe.build(FAST, "dense")
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense(ids).logits.sum().backward()
    whole_attention = 6 * FAST.n_layers * FAST.length * FAST.d_model  # torch counts what the mask throws away, too
    assert counter.get_total_flops() == pytest.approx(
        ids.numel() * (moe.flops_per_token(dense, FAST) + whole_attention), rel=0.02
    )


def test_the_experts_of_a_token_are_those_that_it_was_sent_to(run: moe.Run) -> None:
    ids = torch.randint(FAST.vocabulary, (2, FAST.length))
    found = moe.experts_of(run.model, ids)
    assert found.shape == (FAST.n_layers, ids.numel(), FAST.top_k)
    sent: list[torch.Tensor] = []
    hooks = [
        block.mlp.experts.register_forward_pre_hook(lambda module, inputs: sent.append(inputs[1]))
        for block in run.model.model.layers  # type: ignore[union-attr]
    ]
    run.model(ids)
    for hook in hooks:
        hook.remove()
    assert torch.equal(found.sort().values, torch.stack(sent).sort().values)


def test_a_run_stopped_by_control_c_goes_on_with_the_losses_it_would_have_had(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "ichimon.train", "moe", "--preset", "fast", "--steps", "400", "--checkpoint", folder],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (folder / "run.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    kept = json.loads((folder / "run.json").read_text())["history"]["losses"]
    assert 10 <= len(kept) < 400
    assert f"Stopped with {400 - len(kept)} steps left: the same command goes on from {folder}." in said
    preset = replace(FAST, training=replace(FAST.training, steps=400))
    resumed = moe.run(preset, checkpoint=folder, quiet=True)
    assert resumed.history.resumed_at == len(kept)
    assert resumed.history.losses[: len(kept)] == kept
    assert resumed.history.losses == moe.run(preset, quiet=True).history.losses


def test_two_processes_take_the_steps_of_one_that_accumulates_two_batches(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0")
    done = command(
        "moe", "--preset", "fast", "--device", "cpu", "--checkpoint", str(tmp_path / "run"), launcher=launcher
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count(f"{FAST.training.steps} steps, {2 * FAST.training.steps * FAST.batch * FAST.length:,} tokens")
        == 1
    )
    together = json.loads((tmp_path / "run" / "run.json").read_text())["history"]["losses"]
    alone = moe.run(replace(FAST, training=replace(FAST.training, accumulate=2)), quiet=True, device="cpu")
    torch.testing.assert_close(torch.tensor(together), torch.tensor(alone.history.losses), atol=2e-4, rtol=0)


def test_the_command_says_what_it_does_and_what_came_out() -> None:
    done = command("moe", "--preset", "fast")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("step")]
    assert [line.split("  ")[0] for line in lines] == ["step 10/20", "step 20/20"]
    assert all(word in line for line in lines for word in ("loss", "validation", "tokens/s", "GiB", "busiest expert"))
    assert done.stdout.startswith("20 steps, 2,560 tokens and ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("moe", "--preset", "huge"), "There is no preset 'huge'; there is fast, cpu, gpu, multi-gpu."),
        (("moe", "--preset", "fast", "--parts", "mine"), "There is no notebook 13-router.ipynb"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ichimon.train", *arguments], capture_output=True, text=True,
        env=ONE_THREAD | {"ICHIMON_NOTEBOOKS": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_says_what_to_change(error: Exception) -> None:
    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        raise error

    with pytest.raises(TrainingError, match=r"ran out at step 0\. Halve the batch and set accumulate to 2"):
        train.fit(nn.Linear(2, 2), lambda step: torch.zeros(2, 2), train.Settings(steps=2), loss=loss, quiet=True)


def test_other_errors_are_not_called_a_lack_of_memory() -> None:
    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train.fit(nn.Linear(2, 2), lambda step: torch.zeros(2, 2), train.Settings(steps=2), loss=loss, quiet=True)


def test_without_a_network_the_large_preset_takes_the_text_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*arguments: object) -> None:
        raise corpus.CorpusError("enwik8 could not be fetched.")

    monkeypatch.setattr(corpus, "downloaded_tokens", no_network)
    small = replace(FAST, text="enwik8")
    with pytest.warns(UserWarning, match="could not be fetched. Training on the text that Python carries"):
        assert moe.run(small, steps=2, quiet=True).history.tokens


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_the_large_model_trains_in_bf16() -> None:
    large = replace(PRESETS["gpu"], text="library", batch=4, n_layers=2)
    done = moe.run(large, steps=20, quiet=True)
    assert (done.history.device, done.history.precision) == ("cuda", "bf16")
    assert done.history.losses[-1] < done.history.losses[0]
