"""The small Mixture of Experts that students train: one command, on one process or several, that can be stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NIGHTLY, written
from torch import nn

from ichimon import corpus, moe, train
from ichimon.moe import PRESETS
from ichimon.train import TrainingError

ROOT = Path(__file__).resolve().parents[1]
FAST = PRESETS["fast"]
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def run() -> moe.Run:
    return moe.run("fast", quiet=True, device="cpu")


def command(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *launcher, "-m", "ichimon.train", *arguments], capture_output=True, text=True, env=ONE_THREAD
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 90
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


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
    wait_for(folder / "run.json")
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
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
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


def test_control_c_reaches_all_processes_at_the_same_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ichimon.train",
         "moe", "--preset", "fast", "--device", "cpu", "--steps", "2000", "--checkpoint", folder],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD, start_new_session=True,
    )  # fmt: skip
    wait_for(folder / "run.json")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said = process.communicate(timeout=60)
    kept = json.loads((folder / "run.json").read_text())["history"]
    assert kept["stopped"], said[1]
    assert 10 <= len(kept["losses"]) < 2000
    assert (folder / "random_states_1.pkl").exists()


def test_in_bf16_the_experts_compute_in_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[torch.dtype] = set()
    grouped_mm = torch.nn.functional.grouped_mm

    def listens(x: torch.Tensor, weights: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        seen.update((x.dtype, weights.dtype))
        return grouped_mm(x, weights, **options)

    monkeypatch.setattr(torch.nn.functional, "grouped_mm", listens)
    half = replace(FAST, training=replace(FAST.training, precision="bf16"))
    done = moe.run(half, quiet=True, device="cpu")
    assert done.history.precision == "bf16"
    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in done.model.parameters()} == {torch.float32}, "the weights stay in float32"
    assert done.history.losses[-1] < done.history.losses[0]


@pytest.fixture
def my_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The notebooks of a student who has done chapters 13 and 14: the reference plays the student."""
    for name in ("13-router", "14-balance"):
        (tmp_path / f"{name}.ipynb").write_text(written(name), encoding="utf-8")
    monkeypatch.setenv("ICHIMON_NOTEBOOKS", str(tmp_path))
    return tmp_path


def test_with_my_parts_the_losses_are_those_of_transformers_parts(my_notebooks: Path, run: moe.Run) -> None:
    mine = moe.run("fast", parts="mine", quiet=True, device="cpu")
    torch.testing.assert_close(torch.tensor(mine.history.losses), torch.tensor(run.history.losses), atol=2e-4, rtol=0)
    assert mine.flops == run.flops
    ids = torch.randint(FAST.vocabulary, (2, FAST.length))
    assert moe.experts_of(mine.model, ids).shape == (FAST.n_layers, ids.numel(), FAST.top_k)


def test_what_ships_with_the_course_is_small_and_better_than_chance() -> None:
    sizes = [path.stat().st_size for path in moe.TRAINED.glob("*.safetensors")]
    assert len(sizes) == 2
    assert sum(sizes) < 5_000_000
    text = "\n".join(text.text for text in corpus.texts(corpus.PROSE + corpus.CODE, "test"))[:200_000]
    losses = []
    for kind in ("moe", "dense"):
        model, bpe = moe.load_trained(kind)  # type: ignore[arg-type]
        batches = train.windows(torch.tensor(bpe.encode(text).ids), batch=8, length=128)
        losses.append(train.evaluate(model, batches, 8))
    assert max(losses) < 4.2 < torch.tensor(1024.0).log()


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


@pytest.mark.parametrize(
    "backend",
    ["eager", pytest.param("inductor", marks=pytest.mark.skipif(not NIGHTLY, reason="by night: C++ is slow"))],
)
def test_compiled_it_has_the_losses_and_the_shares_that_it_has_otherwise(
    run: moe.Run, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled = moe.run("fast", quiet=True, device="cpu", compiled="yes")
    assert compiled.history.compiled, "it could not be compiled: for inductor, is a C++ compiler there?"
    assert compiled.history.losses == pytest.approx(run.history.losses, abs=1e-3)
    for (_, ours), (_, theirs) in zip(compiled.shares, run.shares, strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=0.01, rtol=0)


@pytest.mark.skipif(not NIGHTLY, reason="by night: each of two processes compiles for itself")
def test_two_processes_choose_alike_whether_to_compile(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    done = command(
        "moe", "--preset", "fast", "--device", "cpu", "--steps", "120", "--compile", "measure",
        "--checkpoint", str(tmp_path / "run"), launcher=launcher,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compiled from here on" in done.stderr
    history = json.loads((tmp_path / "run" / "run.json").read_text())["history"]
    assert history["compiled"] == (history["step_seconds"][1] < history["step_seconds"][0])
    assert history["losses"][-1] < history["losses"][0]


def test_steps_in_pieces_have_as_many_tokens() -> None:
    whole = moe.run("fast", kind="dense", quiet=True, steps=5)
    pieces = moe.run("fast", kind="dense", quiet=True, steps=5, accumulate=4)
    assert (pieces.preset.batch, pieces.preset.training.accumulate) == (FAST.batch // 4, 4)
    assert pieces.history.tokens == whole.history.tokens
    with pytest.raises(TrainingError, match="A batch of 4 windows cannot be cut into 3 equal pieces"):
        moe.run("fast", steps=5, accumulate=3)


def imagined(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "imagined_gpu.py", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BY_NIGHT = pytest.mark.skipif(not NIGHTLY, reason="by night, as the other one stands for it")


@pytest.mark.parametrize("kind", ["moe", pytest.param("dense", marks=BY_NIGHT)])
def test_the_large_model_leaves_nothing_on_the_cpu_and_fits_a_gpu(kind: str) -> None:
    found = imagined("preset", kind)
    assert found["devices"] == ["gpu:0"]
    assert found["flops"] / (30 * 60) == pytest.approx(70e12, rel=0.05), "half an hour at 70 · 10¹² a second"
    assert found["bytes"]["1"] < 40e9, "a data-centre GPU has 40 GB or more"
    assert found["bytes"]["2"] < 24e9, "in two pieces it suits a large card for games"


@pytest.mark.skipif(not NIGHTLY, reason="by night: chapter 13's answer is tried there by its notebook too")
@pytest.mark.usefixtures("my_notebooks")
def test_a_right_answer_of_chapters_13_and_14_leaves_nothing_on_the_cpu() -> None:
    assert imagined("parts", "mine")["devices"] == ["gpu:0"]


@pytest.mark.parametrize("name", ["06-gpt", *(pytest.param(name, marks=BY_NIGHT) for name in ("13-router", "18-lora"))])
def test_what_a_notebook_trains_with_right_answers_runs_on_a_gpu(name: str) -> None:
    found = imagined("notebook", name)
    assert found["trainings"] >= 1
    assert found["devices"] == ["gpu:0"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("compiled", ["no", "yes"])
def test_on_a_gpu_the_large_model_trains_in_bf16(compiled: train.Compiled) -> None:
    large = replace(PRESETS["gpu"], text="library", batch=4, n_layers=2)
    done = moe.run(large, steps=20, quiet=True, compiled=compiled)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert (done.history.device, done.history.precision) == ("cuda", "bf16" if bf16 else "fp32")
    assert done.history.compiled == (compiled == "yes")
    assert done.history.losses[-1] < done.history.losses[0]


def test_the_shares_are_drawn_under_the_curve(run: moe.Run) -> None:
    from matplotlib.figure import Figure

    watch = moe.Shares(FAST)
    watch.seen = list(run.shares)
    ax = Figure().add_subplot()
    watch.draw(ax)
    assert ax.images[0].get_array().shape == (FAST.n_layers, FAST.n_experts)  # type: ignore[union-attr]
    assert "Share of each expert" in (ax.get_title(), ax.get_title("left"))  # where the style puts it
