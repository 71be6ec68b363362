# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   ichimon:
#     assignment: 13-router
# ---

# %% role="set-up"
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def grouped_product(
    rows: Float[Tensor, "n_rows d_in"], matrices: Float[Tensor, "n_groups d_out d_in"], ends: Int[Tensor, "n_groups"]
) -> Float[Tensor, "n_rows d_out"]:
    """Each row times the matrix of its group, which is stored as nn.Linear stores a weight.

    The rows stand group by group: those of group g end before row ends[g]. A group may be empty.
    """
    aligned = all(width * rows.element_size() % 16 == 0 for width in matrices.shape[1:])
    if aligned and rows.dtype != torch.float64:  # what F.grouped_mm takes
        return F.grouped_mm(rows, matrices.mT, offs=ends.to(torch.int32))
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([part @ matrix.T for part, matrix in zip(rows.split(sizes), matrices.unbind(), strict=True)])


# %% exercise="route"
def route(
    logits: Float[Tensor, "tokens n_experts"], top_k: int, renormalise: bool = True
) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
    """The weights and numbers of each token's top_k experts, largest first.

    Source: Jiang et al. 2024 (arXiv 2401.04088), section 2.1.
    """
    ### BEGIN SOLUTION
    probabilities = logits.softmax(-1, dtype=torch.float32)
    weights, experts = probabilities.topk(top_k, dim=-1)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts
    ### END SOLUTION


# %% check="route" points=5
assert callable(route), "route should be callable."

# %% exercise="MoELayer"
class MoELayer(nn.Module):
    """A feed-forward layer of n_experts SwiGLU experts, of which each token uses top_k.

    Source: Jiang et al. 2024 (arXiv 2401.04088), section 2.1.
    """

    def __init__(self, d_model: int, d_hidden: int, n_experts: int, top_k: int, renormalise: bool = True) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) / math.sqrt(d_model))
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) / math.sqrt(d_hidden))
        ### END SOLUTION

    def forward(self, x: Float[Tensor, "batch n d_model"]) -> Float[Tensor, "batch n d_model"]:
        """The weighted sum of what each token's experts make of it."""
        ### BEGIN SOLUTION
        tokens = x.flatten(0, 1)
        weights, experts = route(self.router(tokens), self.top_k, self.renormalise)
        out = torch.zeros_like(tokens)
        for expert, (gate_up, down) in enumerate(zip(self.gate_up.unbind(), self.down.unbind(), strict=True)):
            token, place = torch.where(experts == expert)
            gate, up = (tokens[token] @ gate_up.T).chunk(2, -1)
            y = (F.silu(gate) * up) @ down.T
            out = out.index_add(0, token, weights[token, place, None] * y)
        return out.view_as(x)
        ### END SOLUTION


# %% check="MoELayer" points=8
assert callable(MoELayer), "MoELayer should be callable."

# %% exercise="grouped_experts"
def grouped_experts(
    x: Float[Tensor, "tokens d_model"],
    weights: Float[Tensor, "tokens top_k"],
    experts: Int[Tensor, "tokens top_k"],
    gate_up: Float[Tensor, "n_experts two_d_hidden d_model"],
    down: Float[Tensor, "n_experts d_model d_hidden"],
) -> Float[Tensor, "tokens d_model"]:
    """The experts' weighted sum for every token, with the tokens sorted by expert."""
    ### BEGIN SOLUTION
    chosen = experts.flatten()
    order = chosen.argsort()
    ends = chosen.bincount(minlength=len(down)).cumsum(0)
    rows = x.index_select(0, order // experts.shape[1])
    gate, up = (grouped_product(rows, half, ends) for half in gate_up.chunk(2, dim=1))
    y = grouped_product(F.silu(gate) * up, down, ends)
    back = order.argsort().view_as(experts)  # where in y the answers for each token stand
    return F.embedding_bag(back, y, per_sample_weights=weights, mode="sum")
    ### END SOLUTION


# %% check="grouped_experts" points=7
assert callable(grouped_experts), "grouped_experts should be callable."
