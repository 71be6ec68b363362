# view() straight to the new shape, there and back. Everything else as student-01.
# %% split_heads
def split_heads(x: Shaped[Tensor, "... n d_model"], n_heads: int) -> Shaped[Tensor, "... n_heads n d_head"]:
    """Give each head its own block of d_head = d_model / n_heads neighbouring channels."""
    B, T, C = x.shape
    hs = C // n_heads  # head size
    return x.view(B, n_heads, T, hs)

# %% merge_heads
def merge_heads(x: Shaped[Tensor, "... n_heads n d_head"]) -> Shaped[Tensor, "... n d_model"]:
    """Put the heads' channels side by side again: the inverse of split_heads."""
    B, nh, T, hs = x.shape
    return x.reshape(B, T, nh * hs)
