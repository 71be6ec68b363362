"""Expert parallelism between real processes: the function of chapter 17 over torch.distributed.

    torchrun --nproc-per-node 2 examples/expert_parallel.py
    torchrun --nproc-per-node 4 examples/expert_parallel.py --notebook notebooks/17-moe-at-scale/17-moe-at-scale.ipynb

Every process draws the same layer and the same tokens from one seed, and keeps its own part: some tokens, and two of
the experts. It runs the layer forward and backward with the others, prints what it sent to whom, and compares output
and gradients with those of one process that has everything. With `--notebook` the function is yours.

The processes speak gloo, or NCCL where each has a GPU of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

ROOT = Path(__file__).resolve().parents[1]
D_MODEL, D_HIDDEN, N_LOCAL, TOP_K = 32, 48, 2, 2

Forward = Callable[..., Tensor]


# -- the network ------------------------------------------------------------------------------------------------------


def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
    came = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(came, rows.contiguous(), list(receive), list(send))
    return came


class Exchange(torch.autograd.Function):
    """The gradient of a row travels back the way that the row came."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        ctx.way_back = receive, send
        return exchange(rows, send, receive)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return exchange(grad, *ctx.way_back), None, None


@dataclass
class Network:
    """The `all_to_all` of one process, which notes how many bytes it sent to each: forward, in each exchange."""

    sent: list[list[int]] = field(default_factory=list)

    def all_to_all(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        row = rows[:1].numel() * rows.element_size()
        self.sent.append([n * row for n in send])
        return Exchange.apply(rows, send, receive) if rows.is_floating_point() else exchange(rows, send, receive)


# -- the layer --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """All tokens of all ranks and all experts of one MoE layer; `popularity` is added to the router's logits."""

    x: list[Tensor]
    router: Tensor
    popularity: Tensor
    gate_up: Tensor
    down: Tensor
    upstream: list[Tensor]  # the gradient that arrives at each output

    @staticmethod
    def draw(
        tokens: Sequence[int], popularity: Sequence[float], *, device: torch.device | str = "cpu", seed: int = 0
    ) -> Layer:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, generator=generator)).to(device)

        n = N_LOCAL * len(tokens)
        return Layer(
            x=[normal(t, D_MODEL) for t in tokens],
            router=normal(n, D_MODEL, scale=D_MODEL**-0.5),
            popularity=torch.tensor(popularity, device=device).repeat_interleave(N_LOCAL),
            gate_up=normal(n, 2 * D_HIDDEN, D_MODEL, scale=D_MODEL**-0.5),
            down=normal(n, D_MODEL, D_HIDDEN, scale=D_HIDDEN**-0.5),
            upstream=[normal(t, D_MODEL) for t in tokens],
        )

    def route(self, x: Tensor, router: Tensor) -> tuple[Tensor, Tensor]:
        logits = x @ router.T + self.popularity
        weights, experts = logits.softmax(-1).topk(TOP_K)
        return weights / weights.sum(-1, keepdim=True), experts

    def alone(self) -> dict[str, Any]:
        """Outputs and gradients of one process that has everything: every expert computes every token."""
        x = [part.clone().requires_grad_() for part in self.x]
        router, gate_up, down = (part.clone().requires_grad_() for part in (self.router, self.gate_up, self.down))
        outputs, total = [], torch.zeros((), device=router.device)
        for part, upstream in zip(x, self.upstream, strict=True):
            weights, experts = self.route(part, router)
            gate, up = torch.einsum("td,ehd->teh", part, gate_up).chunk(2, -1)
            every = torch.einsum("teh,edh->ted", functional.silu(gate) * up, down)
            full = torch.zeros(len(part), len(down), device=part.device).scatter(1, experts, weights)
            outputs.append(torch.einsum("te,ted->td", full, every))
            total = total + (outputs[-1] * upstream).sum()
        total.backward()
        return {
            "output": [part.detach() for part in outputs],
            "x": [part.grad for part in x],
            "router": router.grad,
            "gate_up": gate_up.grad,
            "down": down.grad,
        }

    def together(self, forward: Forward, rank: int, network: Network) -> dict[str, Tensor | None]:
        """This rank's output and gradients; the router is everybody's, so its gradients are summed over the ranks."""
        mine = slice(N_LOCAL * rank, N_LOCAL * (rank + 1))
        leaves = {"x": self.x[rank], "router": self.router, "gate_up": self.gate_up[mine], "down": self.down[mine]}
        leaves = {name: part.clone().requires_grad_() for name, part in leaves.items()}
        weights, experts = self.route(leaves["x"], leaves["router"])
        output = forward(
            leaves["x"], weights, experts, leaves["gate_up"], leaves["down"], len(self.x), network.all_to_all
        )
        (output * self.upstream[rank]).sum().backward()
        if leaves["router"].grad is not None:
            dist.all_reduce(leaves["router"].grad)
        return {"output": output.detach(), **{name: leaf.grad for name, leaf in leaves.items()}}


def differences(layer: Layer, forward: Forward, rank: int, network: Network) -> dict[str, float]:
    """The largest difference between this rank's part and that of one process, for the output and each gradient."""
    expected, found = layer.alone(), layer.together(forward, rank, network)
    mine = slice(N_LOCAL * rank, N_LOCAL * (rank + 1))
    own = {"output": expected["output"][rank], "x": expected["x"][rank], "router": expected["router"]}
    own |= {name: expected[name][mine] for name in ("gate_up", "down")}
    apart = {}
    for name, value in own.items():
        other = found[name]
        if other is None or other.shape != value.shape:
            raise ValueError(f"Rank {rank}: no gradient reached {name}, or what came has another shape.")
        apart[name] = (value - other).abs().max().item() if value.numel() else 0.0
    return apart


SCENES: dict[str, Callable[[int], tuple[list[int], list[float]]]] = {  # tokens and popularity of each rank
    "even loads": lambda world: ([24] * world, [0.0] * world),
    "uneven loads": lambda world: ([40, 3, 17, 8][:world], [1.0, 0.0, -1.0, 0.5][:world]),
    "a rank without tokens": lambda world: ([20] * (world - 1) + [0], [0.0] * world),
    "a rank that nobody asks": lambda world: ([20] * world, [0.0] * (world - 1) + [-1e4]),
    "everybody asks one rank": lambda world: ([12, 5, 9, 1][:world], [1e4] + [0.0] * (world - 1)),
}


def setup() -> torch.device:
    """Join the others that torchrun started; the device of this process."""
    local, each = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and torch.cuda.device_count() >= each and dist.is_nccl_available():
        torch.cuda.set_device(local)
        dist.init_process_group("nccl")
        return torch.device("cuda", local)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    return torch.device("cpu")


def main(notebook: Path) -> None:
    from ichimon.notebook import load

    if "RANK" not in os.environ:
        raise SystemExit("Start it with torchrun: torchrun --nproc-per-node 2 examples/expert_parallel.py")
    forward = load(notebook).expert_parallel_forward
    device = setup()
    rank, world = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        print(f"{world} processes over {dist.get_backend()}, {N_LOCAL} experts each, top-{TOP_K}, d_model {D_MODEL}")
    for name, scene in SCENES.items():
        tokens, popularity = scene(world)
        layer = Layer.draw(tokens, popularity, device=device)
        network = Network()
        apart = differences(layer, forward, rank, network)
        said: list[Any] = [None] * world
        dist.all_gather_object(said, (network.sent, max(apart.values())))
        if rank == 0:
            print(f"\n{name}")
            for sender, (sent, _) in enumerate(said):
                there, back = sent[1], sent[2]
                print(f"  rank {sender}, {tokens[sender]:>2} tokens: sent tokens {there} and results {back} (bytes)")
            worst = max(difference for _, difference in said)
            print(f"  output and all gradients are those of one process, within {worst:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    import typer

    typer.run(
        lambda notebook=typer.Option(  # noqa: B008
            ROOT / "solutions/17-moe-at-scale.py", help="A notebook whose expert_parallel_forward is used."
        ): main(notebook)
    )
