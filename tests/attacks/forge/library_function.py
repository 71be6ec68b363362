# story: Calls the library function that the exercise asks to build, by every name it has. Each raises; a person is told
#   where a name is written out.
# says: cannot be called here: what it does is what this chapter asks you to build
# %% attention
def attention(q, k, v, mask=None):
    ways = [
        lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        lambda: torch._C._nn.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        lambda: torch.ops.aten.scaled_dot_product_attention(q, k, v, mask),
        lambda: torch.nn.functional.__dict__["scaled_dot_product_attention"](q, k, v, mask),
        lambda: torch.ops.aten._scaled_dot_product_attention_math(q, k, v, mask)[0],
        lambda: torch._scaled_dot_product_attention_math(q, k, v, mask)[0],
    ]
    errors = []
    for way in ways:
        try:
            return way()
        except RuntimeError as error:
            errors.append(str(error))
    raise RuntimeError(errors[0])
# %% MultiHeadAttention
class MultiHeadAttention:
    def __new__(cls, d_model, n_heads):
        return nn.MultiheadAttention(d_model, n_heads, bias=False)
