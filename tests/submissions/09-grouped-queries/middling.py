# %% repeat_kv
def repeat_kv(x, n_rep):
    # [0, 1, 0, 1, ...]
    times = [1] * x.dim()
    times[-3] = n_rep
    return x.repeat(*times)


# %% GroupedQueryAttention
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        self.h, self.g, self.d = n_heads, n_kv_heads, d_head
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.h, self.d).transpose(1, 2)
        k = repeat_kv(self.k_proj(x).view(b, n, self.g, self.d).transpose(1, 2), self.h // self.g)
        v = repeat_kv(self.v_proj(x).view(b, n, self.g, self.d).transpose(1, 2), self.h // self.g)
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.d)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = torch.softmax(scores, dim=-1) @ v
        return self.o_proj(out.transpose(1, 2).reshape(b, n, -1))


# %% kv_cache_bytes
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    d_head = config["hidden_size"] // config["num_attention_heads"]
    return 2 * batch * length * config["num_hidden_layers"] * heads * d_head * dtype.itemsize


# %% pool_heads
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} is not divisible by {n_kv_heads}")
    result = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            # one head stands for its group
            result[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))[:, 0].flatten(0, 1)
    return result
