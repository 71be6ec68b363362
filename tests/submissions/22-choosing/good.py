# %% what I use again and again
def linear(rows, columns, bias=False):
    return rows * columns + (columns if bias else 0)


def feed_forward_size(shape, width):
    biased = "mlp" in shape.biases
    size = linear(shape.d_model, width, biased) + linear(width, shape.d_model, biased)
    return size + linear(shape.d_model, width, biased) if shape.gated else size


# %% parameters
def parameters(config):
    shape = read(config)
    d = shape.d_model
    if shape.latent:
        lat = shape.latent
        q_out = shape.n_heads * (lat.d_nope + lat.d_rope)
        if lat.q_rank is None:
            attention = linear(d, q_out)
        else:
            attention = linear(d, lat.q_rank) + lat.q_rank + linear(lat.q_rank, q_out)
        attention += linear(d, lat.kv_rank + lat.d_rope) + lat.kv_rank
        attention += linear(lat.kv_rank, shape.n_heads * (lat.d_nope + lat.d_value))
        attention += linear(shape.n_heads * lat.d_value, d)
    else:
        qkv, o = "qkv" in shape.biases, "o" in shape.biases
        attention = linear(d, shape.n_heads * shape.d_head, qkv)
        attention += linear(d, shape.n_kv_heads * shape.d_head, qkv) * 2
        attention += linear(shape.n_heads * shape.d_head, d, o)
        if shape.qk_norm:
            attention += shape.d_head * 2
        if shape.sinks:
            attention += shape.n_heads
    norm = shape.norm * d
    layer = attention + shape.norms * norm
    outside = shape.vocabulary * d + shape.n_positions * d + norm + (norm if shape.tokens_norm else 0)
    if not shape.tied:
        outside += shape.vocabulary * d
    if "head" in shape.biases:
        outside += shape.vocabulary
    dense_layers = shape.n_layers - shape.n_sparse
    base = outside + shape.n_layers * layer + dense_layers * feed_forward_size(shape, shape.d_hidden)
    if shape.n_sparse == 0:
        return base, base
    sparse = linear(d, shape.n_experts, "router" in shape.biases)
    if shape.d_shared:
        sparse += feed_forward_size(shape, shape.d_shared)
    expert = feed_forward_size(shape, shape.d_expert)
    base += shape.n_sparse * sparse
    return base + shape.n_sparse * shape.n_experts * expert, base + shape.n_sparse * shape.top_k * expert


# %% flops_per_token
def flops_per_token(config, context, training=False):
    shape = read(config)
    total, active = parameters(config)
    computing = active - shape.n_positions * shape.d_model
    if not shape.tied:
        computing -= shape.vocabulary * shape.d_model
    if shape.latent:
        key, value = shape.latent.d_nope + shape.latent.d_rope, shape.latent.d_value
    else:
        key, value = shape.d_head, shape.d_head
    attention = 0
    for window in shape.windows:
        positions = context if window is None else min(context, window)
        attention += shape.n_heads * positions * (2 * key + 2 * value)
    flops = 2 * computing + attention
    return flops * 3 if training else flops


# %% fits
def kv_bytes(config, length, batch=1, bits=16):
    shape = read(config)
    if shape.latent:
        per_position = shape.latent.kv_rank + shape.latent.d_rope
    else:
        per_position = 2 * shape.n_kv_heads * shape.d_head
    positions = 0
    for window in shape.windows:
        positions += length if window is None else min(length, window)
    return batch * positions * per_position * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    shape = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    wide = 0
    if shape.n_sparse < shape.n_layers:
        wide = shape.d_hidden
    if shape.n_sparse:
        wide = max(wide, shape.top_k * shape.d_expert + shape.d_shared)
    numbers = 2 * shape.d_model + wide * (2 if shape.gated else 1)
    activations = min(512, length) * numbers * 2 + 4 * shape.vocabulary
    cache = kv_bytes(config, length, bits=kv_bits)
    total = weights + batch * (cache + activations)
    left = memory - weights
    return {
        "weights": weights,
        "cache": batch * cache,
        "activations": batch * activations,
        "total": total,
        "fits": bool(total <= memory),
        "batch": int(left // (cache + activations)) if left > 0 else 0,
    }


# %% decode_roofline
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    shape = read(config)
    total, active = parameters(config)
    weights = active - shape.n_positions * shape.d_model - (0 if shape.tied else shape.vocabulary * shape.d_model)
    resting = shape.n_experts - shape.top_k
    if resting > 0:
        one_expert_of_every_layer = (total - active) / resting
        spared = (1 - shape.top_k / shape.n_experts) ** batch
        weights += (shape.n_experts * (1 - spared) - shape.top_k) * one_expert_of_every_layer
    size = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    seconds = max(size / bandwidth, flops / peak)
    return {
        "bytes": size,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if size / bandwidth >= flops / peak else "compute",
    }


# %% energy_and_cost
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = flops_per_token(config, context, training=True) * tokens
    hours = flops / (mfu * peak * 3600)
    kwh = pue * hours * watts / 1000
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": price * hours}


# %% recommend
def recommend(models, need):
    def look_at(model):
        cache = need["context"] * model["kv_bytes"]
        size = model["parameters"] * need["weight_bits"] / 8 + cache
        speed = need["bandwidth"] / (model["active"] * need["weight_bits"] / 8 + cache)
        training = model["parameters"] * ADAPTATION[need["adaptation"]]
        missing = sorted(need["languages"] - model["languages"])
        against = {}
        if model["shape"] not in TASKS[need["task"]]:
            against["task"] = TASKS[need["task"]], model["shape"]
        if size > need["memory"]:
            against["memory"] = size, need["memory"]
        if speed < need["tokens_per_second"]:
            against["speed"] = need["tokens_per_second"], speed
        if need["context"] > model["context"]:
            against["context"] = need["context"], model["context"]
        if missing:
            against["languages"] = missing, sorted(model["languages"])
        if need["use"] not in model["uses"]:
            against["licence"] = need["use"], model["licence"]
        if training > need["memory"]:
            against["adaptation"] = training, need["memory"]
        return {"name": model["name"], "reasons": against, "bytes": size}

    return sorted([look_at(model) for model in models], key=lambda row: (len(row["reasons"]), row["bytes"]))
