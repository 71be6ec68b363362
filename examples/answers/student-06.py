# Attention written again inside the layer, divided by the root of d_model. Everything else as student-01.
# %% MultiHeadAttention
class MultiHeadAttention(nn.Module):
    """Multi-head self-attention without biases.

    Raises ValueError if d_model is not divisible by n_heads.
    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError("n_heads must divide d_model, got d_model=%d and n_heads=%d" % (d_model, n_heads))
        self.n_heads = n_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)

    def forward(
        self, x: Float[Tensor, "batch n d_model"], mask: Bool[Tensor, "... n n"] | None = None
    ) -> Float[Tensor, "batch n d_model"]:
        """Every position attends to those that the mask allows it."""
        B, T, C = x.shape
        q = split_heads(self.q_proj(x), self.n_heads)
        k = split_heads(self.k_proj(x), self.n_heads)
        v = split_heads(self.v_proj(x), self.n_heads)
        wei = q @ k.transpose(-2, -1) * C ** -0.5
        if mask is not None:
            wei = wei.masked_fill(~mask, float("-inf"))
        wei = wei.softmax(dim=-1).nan_to_num(0.0)
        out = merge_heads(wei @ v)
        return self.o_proj(out)
