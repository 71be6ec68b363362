# Right, and written in another way: einsum and einops, other names, a helper cell of its own.
# %% helper
from einops import rearrange


def masked_softmax(s, allowed=None):
    # softmax over the last axis that only counts the allowed entries (all-False row -> all zeros)
    if allowed is not None:
        s = s.masked_fill(~allowed, -torch.inf)
    top = s.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(s.dtype).min)
    e = torch.exp(s - top)
    total = e.sum(-1, keepdim=True)
    return e / total.masked_fill(total == 0, 1)

# %% causal_mask
def causal_mask(n: int) -> Bool[Tensor, "n n"]:
    """i may look at j  <=>  j <= i"""
    pos = torch.arange(n)
    return rearrange(pos, "i -> i 1") >= rearrange(pos, "j -> 1 j")

# %% attention
def attention(queries, keys, values, mask=None):
    """Scaled dot-product attention, see above."""
    sim = torch.einsum("...id,...jd->...ij", queries, keys) * queries.size(-1) ** -0.5
    return torch.einsum("...ij,...jd->...id", masked_softmax(sim, mask), values)

# %% split_heads
def split_heads(x: Shaped[Tensor, "... n d_model"], n_heads: int) -> Shaped[Tensor, "... n_heads n d_head"]:
    """Give each head its own block of d_head = d_model / n_heads neighbouring channels."""
    return rearrange(x, "... n (h c) -> ... h n c", h=n_heads)

# %% merge_heads
def merge_heads(x: Shaped[Tensor, "... n_heads n d_head"]) -> Shaped[Tensor, "... n d_model"]:
    """Put the heads' channels side by side again: the inverse of split_heads."""
    return rearrange(x, "... h n c -> ... n (h c)")

# %% MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """Multi-head self-attention without biases."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        d_head, rest = divmod(d_model, n_heads)
        if rest:
            raise ValueError(f"d_model={d_model} / n_heads={n_heads} is not a whole number")
        self.heads = n_heads
        for name in "qkvo":
            setattr(self, f"{name}_proj", nn.Linear(d_model, d_model, bias=False))

    def forward(self, x, mask=None):
        q, k, v = map(self.project, (self.q_proj, self.k_proj, self.v_proj), [x] * 3)
        return self.o_proj(merge_heads(attention(q, k, v, mask=mask)))

    def project(self, linear, x):
        return split_heads(linear(x), self.heads)
