# %% parameters
def parameters(config):
    # counts LLaMA's relatives and the mixtures, but nothing for the biases of a feed-forward, as in the GPT line
    s = read(config)
    d = s.d_model
    if s.latent:
        m = s.latent
        q = s.n_heads * (m.d_nope + m.d_rope)
        attention = d * m.q_rank + m.q_rank + m.q_rank * q if m.q_rank else d * q
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    else:
        attention = 2 * d * s.d_head * (s.n_heads + s.n_kv_heads)
        if "qkv" in s.biases:
            attention += (s.n_heads + 2 * s.n_kv_heads) * s.d_head
        if "o" in s.biases:
            attention += d
        attention += 2 * s.d_head * s.qk_norm
    def mlp(h):
        return (3 if s.gated else 2) * d * h
    count = s.vocabulary * d * (1 if s.tied else 2) + d * s.norm + s.n_layers * (attention + s.norms * s.norm * d)
    count += (s.n_layers - s.n_sparse) * mlp(s.d_hidden)
    count += s.n_sparse * (s.n_experts * d + mlp(s.d_shared))
    return count + s.n_sparse * s.n_experts * mlp(s.d_expert), count + s.n_sparse * s.top_k * mlp(s.d_expert)


# %% flops_per_token
def flops_per_token(config, context, training=False):
    # forgot windows and the latent
    s = read(config)
    n = parameters(config)[1] - s.n_positions * s.d_model - (0 if s.tied else s.vocabulary * s.d_model)
    flops = 2 * n + 4 * s.n_layers * s.n_heads * s.d_head * context
    if training:
        flops = 3 * flops
    return flops


# %% fits
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    wide = 2 * s.n_kv_heads * s.d_head
    if s.latent:
        wide = s.latent.kv_rank + s.latent.d_rope
    return batch * length * s.n_layers * wide * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    raise NotImplementedError("tomorrow")


# %% decode_roofline
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    # all experts are fetched, always
    s = read(config)
    total, active = parameters(config)
    weights = total - s.n_positions * s.d_model - (0 if s.tied else s.vocabulary * s.d_model)
    size = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = size / bandwidth, flops / peak
    seconds = max(fetching, computing)
    bound = "memory" if fetching >= computing else "compute"
    return {"bytes": size, "flops": flops, "seconds": seconds, "tokens_per_second": batch / seconds, "bound": bound}


# %% energy_and_cost
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / (peak * mfu) / 3600
    kwh = hours * watts / 1000  # the building?
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}
