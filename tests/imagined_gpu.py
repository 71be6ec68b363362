"""A GPU of which only the rules exist: whether a step would run there, and in how much memory.

Tensors there have a shape, a dtype and a device, and no numbers, so that the largest model fits; an operation on two
devices is refused as a GPU refuses it. PyTorch's name for such a device is taken for the whole process, so this is a
program: `python tests/imagined_gpu.py preset moe`, `... parts mine` or `... notebook 06-gpt`. What it found is its last
line, in JSON.
"""

from __future__ import annotations

import copy
import json
import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from ichimon import moe, train

SOLUTIONS = Path(__file__).resolve().parents[1] / "solutions"
_setup_privateuseone_for_python_backend("gpu")
GPU = torch.device("gpu:0")
MODE = FakeTensorMode(shape_env=ShapeEnv())  # the environment lets a tensor's numbers decide a shape


def there(value: Any) -> Any:
    """The same tensors on the device. A model is not copied: its own parameters and buffers move there."""
    if isinstance(value, Tensor):
        shape = torch.empty_like(value, device="meta")
        with MODE:
            return FakeTensor(MODE, shape, GPU)
    if isinstance(value, dict):
        return {key: there(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(there(part) for part in value)
    if isinstance(value, nn.Module):
        moved: dict[Tensor, nn.Parameter] = {}  # an embedding may be the read-out too
        for module in value.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    moved.setdefault(weight, nn.Parameter(there(weight.detach()), weight.requires_grad))
                    module._parameters[name] = moved[weight]
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else there(buffer)
    return value


def step(model: nn.Module, batch: Any, settings: train.Settings, loss: train.Loss) -> list[str]:
    """The devices of the gradients of one step there."""
    model, batch = there(model).train(), there(batch)
    optimiser = train._optimiser(model, settings)
    with MODE:
        loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        devices = {str(weight.grad.device) for weight in model.parameters() if weight.grad is not None}
        optimiser.step()
    return sorted(devices)


def preset(kind: moe.Kind) -> dict[str, Any]:
    """A step of the large preset, and the memory that one takes, in bytes: whole, and cut into two pieces."""
    large = moe.PRESETS["gpu"]
    found: dict[str, Any] = {"flops": large.training.steps * large.batch * large.length, "bytes": {}}
    with torch.device("meta"):
        model = moe.build(large, kind).bfloat16()  # grouped products know nothing else there
    found["flops"] *= moe.flops_per_token(model, large)
    batch = torch.empty(large.batch, large.length + 1, dtype=torch.long, device="meta")
    found["devices"] = step(model, batch, large.training, _loss(large, kind))
    for pieces in (1, 2):
        found["bytes"][pieces] = _bytes(replace(large, batch=large.batch // pieces), kind)
    return found


def parts(whose: moe.Parts) -> dict[str, Any]:
    """A step of a small model with these parts, which ICHIMON_NOTEBOOKS holds if they are mine."""
    small = moe.PRESETS["fast"]
    model = moe.build(small, "moe", whose)
    batch = torch.zeros(small.batch, small.length + 1, dtype=torch.long)
    return {"devices": step(model, batch, small.training, _loss(small, "moe", whose))}


def _loss(preset: moe.Preset, kind: moe.Kind, whose: moe.Parts = "transformers") -> train.Loss:
    return partial(moe._loss, preset, moe._balancing(whose) if kind == "moe" else None, None)


def _bytes(large: moe.Preset, kind: moe.Kind) -> int:
    """The most that a step holds in mixed precision, which no imagined device has: by the processor's rules for it."""
    with FakeTensorMode():
        model = moe.build(large, kind).train()
        loss = _loss(large, kind)
        batch = torch.zeros(large.batch, large.length + 1, dtype=torch.long)
        optimiser = train._optimiser(model, large.training)
        for weight in model.parameters():  # a first step, for the optimiser's own memory
            weight.grad = torch.zeros_like(weight)
        optimiser.step()
        optimiser.zero_grad()
        held = MemTracker()
        held.track_external(model, optimiser)
        with held:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(model, batch)
            value.backward()
            optimiser.step()
        peak = held.get_tracker_snapshot("peak")
        return cast(int, sum(of["Total"] for of in peak.values()))


def notebook(name: str) -> dict[str, Any]:
    """The first step of each training in the notebook of a chapter, with the reference's answers."""
    found: list[list[str]] = []

    def fit(
        model: nn.Module, batches: train.Batches, settings: train.Settings, *, loss: train.Loss = train.next_token,
        **options: Any,
    ) -> train.History:  # fmt: skip
        found.append(step(copy.deepcopy(model), batches(0), settings, loss))
        return train.History(losses=[0.0] * settings.steps, validation=[(settings.steps, 0.0)])

    train.fit = cast(Any, fit)
    os.environ["ICHIMON_FAST"] = "1"
    runpy.run_path(str(SOLUTIONS / f"{name}.py"))
    return {"devices": sorted({device for devices in found for device in devices}), "trainings": len(found)}


if __name__ == "__main__":
    programs: dict[str, Callable[..., dict[str, Any]]] = {"preset": preset, "parts": parts, "notebook": notebook}
    print(json.dumps(programs[sys.argv[1]](sys.argv[2])))
