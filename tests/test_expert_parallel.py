"""Chapter 17's expert parallelism over torch.distributed, between real processes: forward and backward as in one.

The processes are forked from a server that has imported torch once. gloo runs everywhere; the NCCL variants need as
many GPUs as ranks.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ichimon.notebook import load

ROOT = Path(__file__).resolve().parents[1]
SOLUTION = ROOT / "solutions/17-moe-at-scale.py"


def example() -> ModuleType:
    """examples/expert_parallel.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("expert_parallel", ROOT / "examples/expert_parallel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["expert_parallel"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


expert_parallel = example()

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch was built without gloo"
)


def needs_gpus(ranks: int) -> Any:
    there = torch.cuda.device_count() if dist.is_available() and dist.is_nccl_available() else 0
    return pytest.param(ranks, marks=pytest.mark.skipif(there < ranks, reason=f"NCCL: {ranks} GPUs, here are {there}"))


def one_rank(rank: int, world: int, backend: str, folder: str) -> None:
    """All scenes on one rank; what it found goes into a file."""
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    forward = load(SOLUTION).expert_parallel_forward
    found = {}
    for name, scene in expert_parallel.SCENES.items():
        network = expert_parallel.Network()
        layer = expert_parallel.Layer.draw(*scene(world), device=device, seed=world)
        apart = expert_parallel.differences(layer, forward, rank, network)
        found[name] = {"apart": apart, "sent": network.sent}
    torch.save(found, f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


def run(world: int, backend: str, folder: Path) -> list[dict[str, Any]]:
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "jaxtyping", "numpy"])
    folder.mkdir(exist_ok=True)
    mp.start_processes(one_rank, (world, backend, str(folder)), nprocs=world, start_method="forkserver")
    return [torch.load(folder / str(rank)) for rank in range(world)]


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What 2 and 4 ranks over gloo found."""
    return {world: run(world, "gloo", tmp_path_factory.mktemp(f"gloo-{world}")) for world in (2, 4)}


@needs_gloo
@pytest.mark.parametrize("scene", expert_parallel.SCENES)
@pytest.mark.parametrize("world", [2, 4])
def test_output_and_gradients_are_those_of_one_process(
    spread: dict[int, list[dict[str, Any]]], world: int, scene: str
) -> None:
    for rank, found in enumerate(spread[world]):
        for name, apart in found[scene]["apart"].items():
            assert apart < 1e-4, f"rank {rank}: {name} is off by {apart:.2g}"


@needs_gloo
@pytest.mark.parametrize("world", [2, 4])
def test_the_scenes_are_what_they_are_called(spread: dict[int, list[dict[str, Any]]], world: int) -> None:
    """Somebody really sends nothing, and somebody really gets nothing."""
    tokens, results = 1, 2
    without = spread[world][-1]["a rank without tokens"]["sent"]
    assert sum(without[tokens]) == 0
    assert sum(without[results]) > 0
    asked = [found["a rank that nobody asks"]["sent"] for found in spread[world]]
    assert all(sent[tokens][-1] == 0 for sent in asked)
    assert sum(asked[-1][results]) == 0
    one = [found["everybody asks one rank"]["sent"][tokens] for found in spread[world]]
    assert all(sum(sent[1:]) == 0 < sent[0] for sent in one)


@needs_gloo
@pytest.mark.parametrize("world", [2, 4])
def test_each_assignment_crosses_once_there_and_once_back(spread: dict[int, list[dict[str, Any]]], world: int) -> None:
    row = 4 * expert_parallel.D_MODEL
    for scene, draw in expert_parallel.SCENES.items():
        tokens, _ = draw(world)
        there = [found[scene]["sent"][1] for found in spread[world]]
        back = [found[scene]["sent"][2] for found in spread[world]]
        assert [sum(sent) for sent in there] == [n * expert_parallel.TOP_K * row for n in tokens]
        assert [list(way) for way in zip(*there, strict=True)] == back


@needs_gloo
def test_the_demonstration_says_what_was_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With one process, as torchrun would start it."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()

    def join() -> torch.device:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
        return torch.device("cpu")

    monkeypatch.setattr(expert_parallel, "setup", join)
    expert_parallel.main(SOLUTION)
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "1 processes over gloo" in printed
    for scene in expert_parallel.SCENES:
        assert scene in printed
    assert printed.count("output and all gradients are those of one process") == len(expert_parallel.SCENES)


def test_the_demonstration_asks_for_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert "RANK" not in os.environ
    with pytest.raises(SystemExit, match="torchrun"):
        expert_parallel.main(SOLUTION)


@pytest.mark.parametrize("world", [needs_gpus(1), needs_gpus(2), needs_gpus(4)])
def test_over_nccl_too(world: int, tmp_path: Path) -> None:
    for found in run(world, "nccl", tmp_path):
        for scene, result in found.items():
            for name, apart in result["apart"].items():
                assert apart < 1e-3, f"{scene}: {name} is off by {apart:.2g}"
