# %% causal_mask
def causal_mask(n: int) -> Bool[Tensor, "n n"]:
    """Entry [i, j] is True where position i may attend to position j: to itself and to the past.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3.
    """
    return torch.tril(torch.ones((n, n), dtype=torch.bool))

# %% attention
def attention(
    q: Float[Tensor, "... n_q d_head"],
    k: Float[Tensor, "... n_k d_head"],
    v: Float[Tensor, "... n_k d_v"],
    mask: Bool[Tensor, "... n_q n_k"] | None = None,
) -> Float[Tensor, "... n_q d_v"]:
    """Scaled dot-product attention. True in the mask means "may attend"; a row without any True gives zeros.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.1.
    """
    d_head = q.shape[-1]
    scores = torch.matmul(q, k.transpose(-2, -1)) / d_head ** 0.5
    if mask is None:
        return torch.matmul(torch.softmax(scores, dim=-1), v)
    scores = scores.masked_fill(mask == False, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    # rows with no True are nan now -> make them 0
    weights = torch.where(mask, weights, torch.zeros_like(weights))
    return torch.matmul(weights, v)

# %% split_heads
def split_heads(x: Shaped[Tensor, "... n d_model"], n_heads: int) -> Shaped[Tensor, "... n_heads n d_head"]:
    """Give each head its own block of d_head = d_model / n_heads neighbouring channels."""
    *lead, n, d_model = x.shape
    return x.reshape(*lead, n, n_heads, d_model // n_heads).transpose(-3, -2)

# %% merge_heads
def merge_heads(x: Shaped[Tensor, "... n_heads n d_head"]) -> Shaped[Tensor, "... n d_model"]:
    """Put the heads' channels side by side again: the inverse of split_heads."""
    *lead, n_heads, n, d_head = x.shape
    return x.transpose(-3, -2).reshape(*lead, n, n_heads * d_head)

# %% MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """Multi-head self-attention without biases.

    Raises ValueError if d_model is not divisible by n_heads.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        if d_model % n_heads != 0:
            raise ValueError(f"{d_model} channels cannot be shared by {n_heads} heads")
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch n d_model"], mask: Bool[Tensor, "... n n"] | None = None
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position attends to those that the mask allows it."""
        q = split_heads(self.q_proj(x), self.n_heads)
        k = split_heads(self.k_proj(x), self.n_heads)
        v = split_heads(self.v_proj(x), self.n_heads)
        heads = attention(q, k, v, mask)
        return self.o_proj(merge_heads(heads))
