# Half finished: attention without its mask, split_heads begun, merge_heads untouched, a layer without forward.
# %% causal_mask
def causal_mask(n: int) -> Bool[Tensor, "n n"]:
    """Entry [i, j] is True where position i may attend to position j: to itself and to the past.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.3.
    """
    i = torch.arange(n)
    return i[None, :] <= i[:, None]

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
    att = q @ k.transpose(-2, -1)
    att = att / math.sqrt(q.shape[-1])
    # mask?? masked_fill or so, ask in the tutorial
    att = att.softmax(-1)
    return att @ v

# %% split_heads
def split_heads(x: Shaped[Tensor, "... n d_model"], n_heads: int) -> Shaped[Tensor, "... n_heads n d_head"]:
    """Give each head its own block of d_head = d_model / n_heads neighbouring channels."""
    d_head = x.shape[-1] // n_heads
    x = x.reshape(*x.shape[:-1], n_heads, d_head)
    # and now swap the dims

# %% MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """Multi-head self-attention without biases.

    Raises ValueError if d_model is not divisible by n_heads.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch n d_model"], mask: Bool[Tensor, "... n n"] | None = None
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position attends to those that the mask allows it."""
        raise NotImplementedError("your code goes here: replace this line")
