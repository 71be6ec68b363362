"""The one training loop: it learns, goes on as if it had never stopped, and says early what is wrong."""

from __future__ import annotations

import dataclasses
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ichimon import train
from ichimon.train import Settings, TrainingError, fit, windows

IDS = torch.arange(2000) * 7 % 13  # each id follows from the one before
SETTINGS = Settings(steps=12, lr=0.01, warmup=3, evaluate_every=4, evaluate_batches=2)


class Small(nn.Module):
    """Predicts the next id from this one, with dropout, so that a resumed run needs the random state too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop, self.read = nn.Embedding(13, 16), nn.Dropout(0.2), nn.Linear(16, 13)

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.drop(self.embed(ids)))


def small() -> Small:
    torch.manual_seed(1)
    return Small()


BATCHES = windows(IDS, batch=8, length=16)


def test_it_learns_what_there_is_to_learn() -> None:
    model = small()
    history = fit(
        model,
        BATCHES,
        Settings(steps=150, lr=0.03, warmup=5),
        validation=windows(IDS, batch=8, length=16, seed=1),
        quiet=True,
    )
    assert len(history.losses) == 150
    assert history.validation[-1][1] < 0.1 < 2 < history.losses[0]
    assert not model.training


def test_the_same_step_gives_the_same_windows_and_another_seed_others() -> None:
    assert torch.equal(BATCHES(5), windows(IDS, batch=8, length=16)(5))
    assert not torch.equal(BATCHES(5), BATCHES(6))
    assert not torch.equal(BATCHES(5), windows(IDS, batch=8, length=16, seed=1)(5))
    assert BATCHES(0).shape == (8, 17)


@pytest.mark.parametrize("stops", [1, 4, 7, 11])
def test_a_run_that_was_stopped_goes_on_with_the_losses_it_would_have_had(tmp_path: Path, stops: int) -> None:
    validation = windows(IDS, batch=4, length=16, seed=2)
    whole = fit(small(), BATCHES, SETTINGS, validation=validation, quiet=True)

    def breaks(step: int) -> Tensor:
        if step == stops:
            raise RuntimeError("the power went out")
        return BATCHES(step)

    with pytest.raises(RuntimeError, match="power"):
        fit(small(), breaks, SETTINGS, validation=validation, checkpoint=tmp_path / "run", quiet=True)
    model = small()
    resumed = fit(model, BATCHES, SETTINGS, validation=validation, checkpoint=tmp_path / "run", quiet=True)
    assert resumed.resumed_at == stops // 4 * 4
    assert resumed.losses == whole.losses
    assert resumed.validation == whole.validation
    again = fit(small(), BATCHES, SETTINGS, validation=validation, checkpoint=tmp_path / "run", quiet=True)
    assert again.losses == whole.losses, "a run that is done is only read"
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_accumulating_gives_the_steps_of_one_large_batch() -> None:
    model, other = nn.Linear(4, 1), nn.Linear(4, 1)
    other.load_state_dict(model.state_dict())
    x, y = torch.randn(24, 4), torch.randn(24, 1)
    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    parts = lambda i: (x[i % 3 * 8 : i % 3 * 8 + 8], y[i % 3 * 8 : i % 3 * 8 + 8])  # noqa: E731
    a = fit(model, lambda step: (x, y), Settings(steps=5, lr=0.1), loss=loss, quiet=True)
    b = fit(other, parts, Settings(steps=5, lr=0.1, accumulate=3), loss=loss, quiet=True)
    torch.testing.assert_close(a.losses, b.losses)
    torch.testing.assert_close(model.weight, other.weight)


def test_the_learning_rate_warms_up_and_follows_a_cosine_down() -> None:
    settings = Settings(steps=40, lr=1.0, warmup=10, final_lr=0.1)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = train._schedule(optimiser, settings)
    rates = []
    for _ in range(40):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[10] == pytest.approx(1)
    assert rates[25] == pytest.approx(0.55)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11


def test_gains_and_biases_do_not_decay() -> None:
    groups = train._optimiser(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), SETTINGS).param_groups
    assert {(parameter.dim(), group["weight_decay"]) for group in groups for parameter in group["params"]} == {
        (2, 0.1),
        (1, 0.0),
    }


def test_an_auxiliary_loss_of_the_model_is_added() -> None:
    class Output:
        logits = torch.zeros(2, 3, 5)
        aux_loss = torch.tensor(10.0)

    class Model(nn.Module):
        def forward(self, ids: Tensor) -> type[Output]:
            return Output

    assert train.next_token(Model(), torch.zeros(2, 4, dtype=torch.long)).item() == pytest.approx(
        10 + torch.tensor(5.0).log().item()
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"warmup": 12}, "warmup is 12, and must be from 0 to less than steps"),
        ({"lr": float("nan")}, "learning rate is nan"),
        ({"accumulate": 0}, "accumulate is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(change: dict[str, float], says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        dataclasses.replace(SETTINGS, **change)


def test_a_text_shorter_than_a_window_is_refused_with_both_numbers() -> None:
    with pytest.raises(TrainingError, match="There are 16 tokens, and a window of length 16 takes 17"):
        windows(IDS[:16], batch=2, length=16)
    with pytest.raises(TrainingError, match="There are 0 tokens"):
        windows(IDS[:0], batch=2, length=16)
    with pytest.raises(TrainingError, match=r"one long row, and have the shape \(2, 1000\)"):
        windows(IDS.view(2, -1), batch=2, length=16)
    assert windows(IDS[:17], batch=2, length=16)(0).shape == (2, 17)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused_and_the_others_named() -> None:
    with pytest.raises(TrainingError, match=r"There is no cuda device here: use device='auto'.*cpu"):
        fit(small(), BATCHES, dataclasses.replace(SETTINGS, device="cuda"), quiet=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_it_trains_in_bf16() -> None:
    history = fit(small().cuda(), BATCHES, Settings(steps=100, lr=0.03), quiet=True)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    assert (history.device, history.precision) == ("cuda", "bf16" if bf16 else "fp32")
    assert history.losses[-1] < 0.5


@pytest.mark.parametrize(("generation", "takes_it"), [(7, False), (8, True)])
def test_bf16_is_not_taken_where_a_gpu_only_emulates_it(
    monkeypatch: pytest.MonkeyPatch, generation: int, takes_it: bool
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=generation))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert train._computes_in_bf16() == takes_it


class Late(nn.Module):
    """A model whose every pass comes late: the other one is faster."""

    def __init__(self, model: nn.Module, seconds: float) -> None:
        super().__init__()
        self.model, self.seconds = model, seconds

    def forward(self, *inputs: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return self.model(*inputs)


LONG = dataclasses.replace(SETTINGS, steps=120, compiled="measure")


@pytest.mark.parametrize(("seconds", "compiling"), [((0.0, 0.02), False), ((0.02, 0.0), True)])
def test_it_compiles_where_the_first_steps_are_faster_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: tuple[float, float], compiling: bool
) -> None:
    plain, compiled = seconds
    passes = {"plain": 0, "compiled": 0}
    model = Late(small(), plain)

    class Compiled(Late):
        def forward(self, *inputs: Tensor) -> Tensor:
            passes["compiled"] += 1
            time.sleep(self.seconds)
            return self.model.model(*inputs)

    monkeypatch.setattr(torch, "compile", lambda whole: Compiled(whole, compiled))
    model.register_forward_pre_hook(lambda *_: passes.update(plain=passes["plain"] + 1))
    history = fit(model, BATCHES, LONG)
    assert history.compiled == compiling
    assert history.step_seconds is not None
    assert (history.step_seconds[1] < history.step_seconds[0]) == compiling
    trial = train._Faster.WARM + train._Faster.TIMED
    rest = LONG.steps - 2 * trial
    assert passes == {"plain": trial + rest * (not compiling), "compiled": trial + rest * compiling}
    said = capsys.readouterr().err
    assert f"{'compiled' if compiling else 'not compiled'} from here on, about 0 min for {rest} steps." in said


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("compiled", ["yes", "measure"])
def test_a_model_that_cannot_be_compiled_is_trained_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compiled: train.Compiled,
    accumulate: int,
    error: type[RuntimeError],
) -> None:
    class Refused(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            raise error("No working C++ compiler found\nand a long report")

    settings = dataclasses.replace(LONG, compiled=compiled, accumulate=accumulate)
    plain = fit(small(), BATCHES, dataclasses.replace(settings, compiled="no"), quiet=True)
    monkeypatch.setattr(torch, "compile", lambda whole: Refused())
    history = fit(small(), BATCHES, settings)
    assert history.losses == plain.losses
    assert history.compiled is False
    said = capsys.readouterr().err
    reason = f"{error.__name__}: No working C++ compiler found\n"
    assert f"It cannot be compiled here, and is trained as it is: {reason}" in said


def test_memory_that_suffices_only_as_it_is_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(Late):
        passes = 0

        def forward(self, *inputs: Tensor) -> Tensor:
            self.passes += 1
            if self.passes == 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(*inputs)

    plain = fit(small(), BATCHES, dataclasses.replace(LONG, compiled="no"), quiet=True)
    monkeypatch.setattr(torch, "compile", lambda whole: Greedy(whole, 0.0))
    history = fit(small(), BATCHES, LONG, quiet=True)
    assert history.losses == plain.losses
    assert history.compiled is False
    monkeypatch.setattr(torch, "compile", lambda whole: whole)
    with pytest.raises(TrainingError, match="The memory ran out at step 0"):
        fit(Greedy(small(), 0.0), BATCHES, dataclasses.replace(LONG, accumulate=3), quiet=True)


def test_a_fault_of_the_model_is_not_laid_on_the_compiler() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        raise ValueError("my own fault")

    with pytest.raises(ValueError, match="my own fault"):
        fit(small(), BATCHES, dataclasses.replace(LONG, compiled="yes"), loss=loss, quiet=True)


def test_a_short_run_is_not_measured_and_a_resumed_one_keeps_the_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "compile", lambda whole: Late(whole, 0.02))
    assert fit(small(), BATCHES, dataclasses.replace(LONG, steps=50), quiet=True).step_seconds is None
    done = fit(small(), BATCHES, LONG, checkpoint=tmp_path / "run", quiet=True)
    again = fit(small(), BATCHES, LONG, checkpoint=tmp_path / "run", quiet=True)
    assert again.step_seconds == done.step_seconds is not None
    assert again.compiled is False


def test_bf16_can_be_asked_for_and_learns_too() -> None:
    history = fit(small(), BATCHES, Settings(steps=60, lr=0.03, precision="bf16", device="cpu"), quiet=True)
    assert history.precision == "bf16"
    assert history.losses[-1] < 1 < history.losses[0]


def test_a_loss_that_is_no_number_ends_the_run_with_the_step_and_what_to_do() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return train.next_token(model, batch) * (float("nan") if batch.sum() == BATCHES(3).sum() else 1)

    with pytest.raises(TrainingError, match=r"became nan at step 3, at a learning rate of 0\.01: lower lr"):
        fit(small(), BATCHES, SETTINGS, loss=loss, quiet=True)


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(TrainingError, match="no parameter that can be trained"):
        fit(nn.Identity(), BATCHES, SETTINGS, quiet=True)


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    fit(small(), BATCHES, SETTINGS, checkpoint=tmp_path / "run", quiet=True)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(TrainingError, match=r"other settings \(lr was 0.01 and is 0.02\)"):
        fit(small(), BATCHES, dataclasses.replace(SETTINGS, lr=0.02), checkpoint=tmp_path / "run", quiet=True)
    with pytest.raises(TrainingError, match="does not fit this model or is damaged"):
        fit(nn.Linear(3, 3), BATCHES, SETTINGS, checkpoint=tmp_path / "run", quiet=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "else").mkdir()
    with pytest.raises(TrainingError, match="holds no checkpoint of a run"):
        fit(small(), BATCHES, SETTINGS, checkpoint=tmp_path / "else", quiet=True)


def test_a_run_that_was_killed_between_two_renames_is_found(tmp_path: Path) -> None:
    whole = fit(small(), BATCHES, SETTINGS, checkpoint=tmp_path / "run", quiet=True)
    (tmp_path / "run").rename(tmp_path / "run.old")
    assert fit(small(), BATCHES, SETTINGS, checkpoint=tmp_path / "run", quiet=True).losses == whole.losses


def test_control_c_finishes_the_step_and_keeps_the_run(tmp_path: Path) -> None:
    def interrupts(step: int) -> Tensor:
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return BATCHES(step)

    stopped = fit(small(), interrupts, SETTINGS, checkpoint=tmp_path / "run", quiet=True)
    assert stopped.stopped
    assert len(stopped.losses) == 7
    whole = fit(small(), BATCHES, SETTINGS, quiet=True)
    assert fit(small(), BATCHES, SETTINGS, checkpoint=tmp_path / "run", quiet=True).losses == whole.losses


def test_it_trains_in_a_thread_too() -> None:
    found: list[train.History] = []
    thread = threading.Thread(target=lambda: found.append(fit(small(), BATCHES, SETTINGS, quiet=True)))
    thread.start()
    thread.join()
    assert len(found[0].losses) == SETTINGS.steps


SCRIPT = """
import torch
from ichimon import train
from torch import nn
ids = torch.arange(500) % 7
model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 7))
batches = train.windows(ids, batch=4, length=8)
train.fit(model, batches, train.Settings(steps=6, evaluate_every=3, evaluate_batches=1), validation=batches)
"""


def test_a_log_gets_plain_lines_and_no_bar() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    lines = ran.stderr.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 3/6", "step 6/6"]
    assert all("loss" in line and "validation" in line for line in lines)
    assert "\r" not in ran.stderr


def test_a_terminal_gets_a_bar() -> None:
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=child, stdout=child)
    os.close(child)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    assert b"training" in shown
    assert b"6/6" in shown
    assert b"step 3/6" in shown


def test_a_notebook_gets_a_live_curve(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SCRIPT)])
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    kinds = [key for output in book.cells[0].outputs for key in output.get("data", {})]
    assert "image/png" in kinds
    assert kinds.count("image/png") == 1, "one figure that changes, not one after the other"
