"""The one training loop of the course: notebooks, experiments and the chapters that train on a GPU all use it.

    from ichimon import corpus, train
    history = train.fit(model, train.windows(ids, batch=16, length=128), train.Settings(steps=500))

It takes whatever device there is (through accelerate), shows a bar and, in a notebook, a live curve, keeps checkpoints
from which a run goes on as if it had never stopped, and says in a sentence what is wrong before time is lost.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from accelerate import Accelerator
    from matplotlib.axes import Axes

Batches = Callable[[int], Any]  # the batch of a step; the same step gives the same batch
Loss = Callable[[nn.Module, Any], Tensor]
Compiled = Literal["no", "yes", "measure"]


class Watch(Protocol):
    """Something to show beside the loss while a model trains, such as which experts are used."""

    def look(self, step: int) -> str:
        """Called at each evaluation: what the line of that step should say of it."""

    def draw(self, ax: Axes) -> None:
        """Draw it, under the live curve of a notebook."""


class TrainingError(Exception):
    """What is wrong with a run and what to do about it, in a sentence."""


class OutOfMemory(TrainingError):
    """The device's memory does not suffice for a step."""


@dataclass(frozen=True)
class Settings:
    """How to train. `lr` climbs for `warmup` steps and then follows a cosine down to `final_lr` times itself."""

    steps: int
    lr: float = 1e-3
    warmup: int = 0
    final_lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1  # on matrices; gains and biases are left alone
    clip: float = 1.0  # largest norm of the gradient; 0: no limit
    accumulate: int = 1  # batches whose gradients make one step
    evaluate_every: int = 100  # steps between two looks at the validation data and two checkpoints
    evaluate_batches: int = 8
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the GPU computes in it
    compiled: Compiled = "no"  # by torch.compile; measure: if the run's own first steps are faster for it

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "evaluate_every", "evaluate_batches"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}, and must be at least 1.")
        if not 0 <= self.warmup < self.steps:
            raise TrainingError(f"warmup is {self.warmup}, and must be from 0 to less than steps ({self.steps}).")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise TrainingError(f"The learning rate is {self.lr}, and must be a positive number.")


@dataclass
class History:
    """What a run did. `losses[i]` is the mean loss of the batches of step i, before that step changed the model."""

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)  # (steps done, loss)
    seconds: float = 0.0  # of the steps alone
    tokens: int = 0  # predicted, on all processes
    peak_bytes: int = 0  # the most memory that the GPU, or without one the process, has held
    resumed_at: int = 0
    stopped: bool = False  # by Ctrl-C
    device: str = "cpu"
    precision: str = "fp32"
    compiled: bool | None = None  # None: not yet decided
    step_seconds: tuple[float, float] | None = None  # median of a step as it is and compiled, where it was measured


def windows(ids: np.ndarray | Tensor, *, batch: int, length: int, seed: int = 0) -> Batches:
    """Random windows of a text's ids: int64 [batch, length + 1], of which the first `length` predict the last `length`.

    Raises TrainingError where the text is too short.
    """
    ids = torch.as_tensor(ids)
    if ids.dim() != 1:
        raise TrainingError(f"The ids should be one long row, and have the shape {tuple(ids.shape)}.")
    if len(ids) < length + 1:
        raise TrainingError(
            f"There are {len(ids)} tokens, and a window of length {length} takes {length + 1}: "
            "take more text, or a smaller length."
        )

    def draw(step: int) -> Tensor:
        starts = np.random.default_rng((seed, step)).integers(len(ids) - length, size=batch)
        return torch.stack([ids[start : start + length + 1] for start in starts])

    return draw


def next_token(model: nn.Module, batch: Tensor) -> Tensor:
    """The mean loss of predicting each token from those before it, in nats; models may return logits, or have them.

    `aux_loss`, where a model's output has one, is added: a Mixture of Experts balances itself so.
    """
    out = model(batch[:, :-1])
    logits = getattr(out, "logits", out)
    loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
    extra = getattr(out, "aux_loss", None)
    return loss if extra is None else loss + extra


def evaluate(model: nn.Module, batches: Batches, n: int, loss: Loss = next_token) -> float:
    """The mean loss of the first `n` batches, without training."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    with torch.no_grad():
        found = sum(loss(model, _on(batches(i), device)).item() for i in range(n)) / n
    model.train(was_training)
    return found


def fit(
    model: nn.Module,
    batches: Batches,
    settings: Settings,
    *,
    loss: Loss = next_token,
    validation: Batches | None = None,
    checkpoint: Path | str | None = None,
    quiet: bool = False,
    watch: Watch | None = None,
) -> History:
    """Train `model` in place and say how it went.

    Under torchrun each process draws batches of its own, and a step is one of all of them together.

    With `checkpoint`, a folder, the run is kept there at each evaluation, at its end and on Ctrl-C; if it holds a run
    of the same settings, that run goes on, with the losses it would have had. Raises TrainingError for a device that is
    not there, a loss that is no number, memory that does not suffice, or a checkpoint of another run.
    """
    settings = _where_it_runs(model, batches, settings, loss)
    accelerator = _accelerator(settings)
    torch.manual_seed(settings.seed + accelerator.process_index)
    optimiser = _optimiser(model, settings)
    schedule = _schedule(optimiser, settings)
    prepared, prepared_optimiser = accelerator.prepare(model, optimiser)
    accelerator.register_for_checkpointing(schedule)
    history = History(device=str(accelerator.device), precision=_precision(accelerator))
    folder = Path(checkpoint) if checkpoint else None
    if folder is not None:
        history = _resume(accelerator, folder, settings, history)
    model.train()
    show = _Show(settings, history, watch, silent=quiet or not accelerator.is_main_process)
    faster = _Faster(prepared, accelerator, settings, history, show.say)
    with _interruptible() as interrupted, show:
        for step in range(len(history.losses), settings.steps):
            start = time.perf_counter()
            take = partial(_step, accelerator, prepared_optimiser, batches, step, settings, loss)
            value, tokens = faster.take(take)
            value, stop = _agree(accelerator, value, interrupted.is_set())
            history.losses.append(value)
            history.tokens += tokens * accelerator.num_processes
            schedule.step()
            history.seconds += time.perf_counter() - start
            history.peak_bytes = max(history.peak_bytes, _bytes_held(accelerator.device))
            done = step + 1
            due = done % settings.evaluate_every == 0 or done == settings.steps
            if due and validation is not None:
                whole = accelerator.unwrap_model(prepared)
                history.validation.append((done, evaluate(whole, validation, settings.evaluate_batches, loss)))
            history.stopped = stop
            if folder is not None and (due or history.stopped):
                _save(accelerator, folder, settings, history)
            show.update(float(schedule.get_last_lr()[0]), due=due)
            if history.stopped:
                break
    model.eval()
    return history


def _step(
    accelerator: Accelerator,
    optimiser: torch.optim.Optimizer,
    batches: Batches,
    step: int,
    settings: Settings,
    loss: Loss,
    model: nn.Module,
) -> tuple[float, int]:
    """One change of the weights, from `accumulate` batches a process: their mean loss, and how many tokens they had."""
    total, tokens = 0.0, 0
    accelerator.step = 0  # batches since the last change, and some where a step is taken again
    for i in range(settings.accumulate):
        drawn = (step * settings.accumulate + i) * accelerator.num_processes + accelerator.process_index
        with accelerator.accumulate(model), _memory(step, settings):
            batch = _on(batches(drawn), accelerator.device)
            tokens += _tokens(batch)
            with accelerator.autocast():
                value = loss(model, batch)
            number = value.item()
            if not math.isfinite(number):
                raise TrainingError(
                    f"The loss became {number} at step {step}, at a learning rate of "
                    f"{optimiser.param_groups[0]['lr']:.2g}: lower lr ({settings.lr:g}), warm up for longer "
                    f"({settings.warmup} steps now), or look for a division by zero or a row of −inf in the model."
                )
            total += number
            accelerator.backward(value)
            if settings.clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), settings.clip)
            optimiser.step()
            optimiser.zero_grad()
    return total / settings.accumulate, tokens


class _Faster:
    """The model as it is or compiled; where that is to be measured, whichever takes the run's own first steps faster.

    The steps of the trial alternate, so that what else the machine does slows both down.
    """

    WARM, TIMED = 3, 5  # steps of each; what is not timed compiles, chooses kernels and fills caches
    WORTH_IT = 100  # a run with fewer steps left is over before compiling has paid

    def __init__(
        self,
        model: nn.Module,
        accelerator: Accelerator,
        settings: Settings,
        history: History,
        say: Callable[[str], None],
    ) -> None:
        self.model, self.accelerator, self.steps = model, accelerator, settings.steps
        self.history, self.say = history, say
        self.compiled = model
        if settings.compiled != "no":
            warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # not ours
            self.compiled = cast(nn.Module, torch.compile(model))
        self.taken: dict[bool, list[float]] = {False: [], True: []}
        self.tried = False  # whether a compiled step has come to its end
        if settings.compiled != "measure":
            history.compiled = settings.compiled == "yes"
        elif history.compiled is None and settings.steps - len(history.losses) < self.WORTH_IT:
            history.compiled = False

    def take(self, step: Callable[[nn.Module], tuple[float, int]]) -> tuple[float, int]:
        """What `step` gives for the model, which it trains."""
        if self.history.compiled is not None:
            return self._compiled(step) if self.history.compiled else step(self.model)
        compiled = len(self.taken[True]) < len(self.taken[False])
        start = self._now()
        found = self._compiled(step) if compiled else step(self.model)
        self.taken[compiled].append(self._now() - start)
        if self.history.compiled is None and len(self.taken[True]) == self.WARM + self.TIMED:
            self._decide()
        return found

    def _compiled(self, step: Callable[[nn.Module], tuple[float, int]]) -> tuple[float, int]:
        """A step of the compiled model; of the model as it is, from here on, where that fails for being compiled."""
        try:
            found = step(self.compiled)
        except OutOfMemory as error:
            if self.accelerator.num_processes > 1:  # where others have room, they would go on compiled
                raise
            failed = error.__cause__
        except Exception as error:
            if self.tried or isinstance(error, TrainingError):
                raise
            failed = error
        else:
            self.tried = True
            return found
        reason, _, _ = f"{type(failed).__name__}: {failed}".strip().partition("\n")
        del failed  # it holds the memory of the step
        self.model.zero_grad()
        found = step(self.model)  # if this fails too, then not for being compiled
        self.history.compiled = False
        self.say(f"It cannot be compiled here, and is trained as it is: {reason[:250]}")
        return found

    def _now(self) -> float:
        if self.accelerator.device.type != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter()

    def _decide(self) -> None:
        medians = torch.tensor([float(np.median(self.taken[which][self.WARM :])) for which in (False, True)])
        plain, compiled = self.accelerator.reduce(medians.to(self.accelerator.device), "mean").tolist()
        self.history.step_seconds = plain, compiled
        self.history.compiled = compiled < plain
        left = self.steps - len(self.history.losses) - 1  # this one is not yet noted
        self.say(
            f"A step takes {plain:.3g} s, and compiled {compiled:.3g} s (medians of {self.TIMED} each): "
            f"{'compiled' if self.history.compiled else 'not compiled'} from here on, about "
            f"{min(plain, compiled) * left / 60:.0f} min for {left:,} steps."
        )


def _tokens(batch: Any) -> int:
    """How many next tokens a batch of windows asks for; 0 for batches of another form."""
    return batch.shape[0] * (batch.shape[1] - 1) if isinstance(batch, Tensor) and batch.dim() == 2 else 0


def _agree(accelerator: Accelerator, loss: float, stop: bool) -> tuple[float, bool]:
    """The mean loss of all processes, and whether one of them was told to stop: all stop at the same step."""
    if accelerator.num_processes == 1:
        return loss, stop
    said = accelerator.reduce(torch.tensor([loss, float(stop)], device=accelerator.device), "sum")
    return said[0].item() / accelerator.num_processes, said[1].item() > 0


@contextmanager
def _memory(step: int, settings: Settings) -> Iterator[None]:
    """Turns a device's "out of memory" into a sentence that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and "can't allocate memory" not in str(error):  # what PyTorch's CPU allocator says
            raise
        pieces = 2 * settings.accumulate
        raise OutOfMemory(
            f"The memory ran out at step {step}. Halve the batch and set accumulate to {pieces}: the same step from "
            f"smaller pieces, as python -m ichimon.train --accumulate {pieces} takes it. Or shorten the windows, "
            "or take fewer experts or layers: in a Mixture of Experts all of them are held, although each token meets "
            "few."
        ) from error


def _bytes_held(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


# -- the parts --------------------------------------------------------------------------------------------------------


def _accelerator(settings: Settings) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if settings.device != "auto" and not there[settings.device]:
        raise TrainingError(
            f"There is no {settings.device} device here: use device='auto', which takes the best there is "
            f"({', '.join(name for name in there if there[name])})."
        )
    device = _best_device() if settings.device == "auto" else settings.device
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and device == "cuda" and _computes_in_bf16())
    if AcceleratorState._shared_state:  # one process may train twice, with other settings
        AcceleratorState._reset_state()
        GradientState._reset_state()
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="bf16" if bf16 else "no",
        gradient_accumulation_steps=settings.accumulate,
    )


def _computes_in_bf16() -> bool:
    """Whether the GPU does it itself; older ones only emulate it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _where_it_runs(model: nn.Module, batches: Batches, settings: Settings, loss: Loss) -> Settings:
    """The same settings, or the CPU for a model that cannot leave it: one that makes a mask or positions there.

    A student's model is right on the CPU before it is anywhere else, and training it should not need a GPU's rules.
    """
    device = _best_device()
    alone = os.environ.get("WORLD_SIZE", "1") == "1"  # torchrun gives each process a GPU of its own later
    if settings.device != "auto" or device == "cpu" or not alone:
        return settings
    if _runs_on(torch.device(device), model, batches(0), loss):
        return settings
    print(
        f"This model does not run on {device}, so it is trained on the CPU: somewhere it makes a tensor without "
        f"saying device=x.device."
    )
    return replace(settings, device="cpu")


def _runs_on(device: torch.device, model: nn.Module, batch: Any, loss: Loss) -> bool:
    """Whether the model computes its loss there; if not, it is back on the CPU."""
    was_training = model.training
    try:
        with torch.no_grad():
            loss(model.to(device).eval(), _on(batch, device))
    except torch.OutOfMemoryError:
        return True  # training says what to change
    except (RuntimeError, TypeError):  # TypeError: NumPy cannot read a GPU's memory
        model.cpu()
        return False
    finally:
        model.train(was_training)
    return True


def _precision(accelerator: Accelerator) -> str:
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


def _optimiser(model: nn.Module, settings: Settings) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("This model has no parameter that can be trained.")
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.lr, betas=settings.betas)


def _schedule(optimiser: torch.optim.Optimizer, settings: Settings) -> torch.optim.lr_scheduler.LRScheduler:
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    down = CosineAnnealingLR(optimiser, settings.steps - settings.warmup, eta_min=settings.final_lr * settings.lr)
    if not settings.warmup:
        return down
    up = LinearLR(optimiser, start_factor=1 / (settings.warmup + 1), total_iters=settings.warmup)
    return SequentialLR(optimiser, [up, down], milestones=[settings.warmup])


def _on(batch: Any, device: torch.device) -> Any:
    """A batch, or a tuple, list or dict of them, on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: _on(value, device) for key, value in batch.items()}
    return type(batch)(_on(part, device) for part in batch) if isinstance(batch, list | tuple) else batch


# -- checkpoints ------------------------------------------------------------------------------------------------------


def _save(accelerator: Accelerator, folder: Path, settings: Settings, history: History) -> None:
    """Keep the run in `folder`, whole or not at all: an interruption leaves the one before."""
    accelerator.wait_for_everyone()
    draft, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if accelerator.is_main_process:
        shutil.rmtree(draft, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(draft))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (draft / "run.json").write_text(json.dumps({"settings": asdict(settings), "history": asdict(history)}))
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        draft.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, folder: Path, settings: Settings, history: History) -> History:
    """The history of the run that `folder` holds, its state loaded; the new one if it holds none."""
    old = folder.with_name(folder.name + ".old")
    if not folder.exists() and (old / "run.json").exists():  # stopped between the two renames
        old.rename(folder)
    if not folder.exists():
        return history
    try:
        kept = json.loads((folder / "run.json").read_text())
        before = {**kept["settings"], "betas": tuple(kept["settings"]["betas"])}
        losses, validation = kept["history"]["losses"], [tuple(row) for row in kept["history"]["validation"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise TrainingError(f"{folder} holds no checkpoint of a run: name another folder, or delete it.") from None
    changed = sorted(name for name, value in asdict(settings).items() if before.get(name) != value)
    if changed:
        told = ", ".join(f"{name} was {before.get(name)} and is {asdict(settings)[name]}" for name in changed)
        raise TrainingError(f"{folder} holds a run with other settings ({told}): name another folder, or delete it.")
    try:
        accelerator.load_state(str(folder))
    except Exception as error:  # of safetensors, torch or pickle: the files are damaged, or of another model
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"The checkpoint {folder} does not fit this model or is damaged: {reason}") from error
    return History(
        losses=losses,
        validation=validation,
        seconds=kept["history"]["seconds"],
        tokens=kept["history"]["tokens"],
        peak_bytes=kept["history"]["peak_bytes"],
        resumed_at=len(losses),
        device=history.device,
        precision=history.precision,
        compiled=kept["history"]["compiled"],
        step_seconds=tuple(kept["history"]["step_seconds"] or ()) or None,
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that a step is finished first; a second one interrupts at once.

    torchrun passes a Ctrl-C on to processes that have had it from the terminal, so there the second one is the first.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def on_signal(number: int, frame: Any) -> None:
        interrupted.set()
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


# -- what somebody sees -----------------------------------------------------------------------------------------------


class _Show:
    """A bar in a terminal, a bar and a live curve in a notebook, a line at each evaluation in a log."""

    def __init__(self, settings: Settings, history: History, watch: Watch | None, *, silent: bool) -> None:
        from tqdm.auto import tqdm

        self.settings, self.history, self.watch, self.silent = settings, history, watch, silent
        self.in_notebook = not silent and _in_notebook()
        self.in_terminal = not silent and not self.in_notebook and sys.stderr.isatty()
        self.bar = tqdm(
            total=settings.steps,
            initial=len(history.losses),
            desc="training",
            unit="step",
            disable=not (self.in_notebook or self.in_terminal),
        )
        self.curve: Any = None
        self.drawn = 0.0

    def __enter__(self) -> _Show:
        return self

    def __exit__(self, *error: object) -> None:
        if self.curve is not None:
            self._draw()
        self.bar.close()

    def say(self, sentence: str) -> None:
        if not self.silent:
            self.bar.write(sentence, file=sys.stderr)

    def update(self, lr: float, *, due: bool) -> None:
        history = self.history
        self.bar.update()
        shown = {"loss": f"{history.losses[-1]:.3f}", "lr": f"{lr:.1e}"}
        if history.tokens:
            shown |= {"tokens/s": f"{history.tokens / history.seconds:,.0f}"}
        self.bar.set_postfix(shown | {"memory": f"{history.peak_bytes / 2**30:.1f} GiB"}, refresh=False)
        seen = self.watch.look(len(history.losses)) if due and self.watch else ""
        if due and not (self.silent or self.in_notebook):
            done = len(history.losses)
            recent = history.losses[-min(done, self.settings.evaluate_every) :]
            line = f"step {done}/{self.settings.steps}  loss {sum(recent) / len(recent):.3f}"
            if history.validation:
                line += f"  validation {history.validation[-1][1]:.3f}"
            if history.tokens:
                line += f"  {history.tokens / history.seconds:,.0f} tokens/s  {history.peak_bytes / 2**30:.1f} GiB"
            self.bar.write(line + (f"  {seen}" if seen else ""), file=sys.stderr)
        if self.in_notebook and time.monotonic() - self.drawn > 2:
            self._draw()

    def _draw(self) -> None:
        import matplotlib.pyplot as plt
        from IPython.display import Image, display

        from ichimon import figures

        drawn = io.BytesIO()
        with plt.rc_context():  # the notebook's own figures keep their own style
            height = 5.4 if self.watch else 3.0
            fig, ax = figures.new("The loss while it trains", x="step", y="loss (nats a token)", size=(5.6, height))
            if self.watch:
                grid = fig.add_gridspec(2, 1)
                ax.set_subplotspec(grid[0])
                self.watch.draw(fig.add_subplot(grid[1]))
            ax.plot(self.history.losses, color=figures.SKY, linewidth=1, label="training")
            if self.history.validation:
                steps, values = zip(*self.history.validation, strict=True)
                ax.plot(steps, values, "o-", color=figures.VERMILION, label="validation")
            ax.legend()
            fig.savefig(drawn, format="png")  # by ourselves: not every notebook's backend knows how to show a figure
            plt.close(fig)
        image = Image(drawn.getvalue())
        if self.curve is None:
            self.curve = display(image, display_id=True)
        else:
            self.curve.update(image)
        self.drawn = time.monotonic()


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


if __name__ == "__main__":
    from ichimon.moe import main

    main()
