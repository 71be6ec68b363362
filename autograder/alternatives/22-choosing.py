# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% parameters: every matrix by its shape
def parameters(config):
    s = read(config)
    d = s.d_model

    def linear(n_in, n_out, bias=False):
        return [(n_in, n_out)] + [(n_out,)] * bias

    def mlp(width):
        up = linear(d, width, "mlp" in s.biases)
        return up * (2 if s.gated else 1) + linear(width, d, "mlp" in s.biases)

    norm = [(d,)] * s.norm
    if s.latent:
        m = s.latent
        queries = s.n_heads * (m.d_nope + m.d_rope)
        layer = (
            linear(d, queries) if m.q_rank is None else [*linear(d, m.q_rank), (m.q_rank,), *linear(m.q_rank, queries)]
        )
        layer += linear(d, m.kv_rank + m.d_rope) + [(m.kv_rank,)]
        layer += linear(m.kv_rank, s.n_heads * (m.d_nope + m.d_value)) + linear(s.n_heads * m.d_value, d)
    else:
        layer = linear(d, s.n_heads * s.d_head, "qkv" in s.biases)
        layer += 2 * linear(d, s.n_kv_heads * s.d_head, "qkv" in s.biases)
        layer += linear(s.n_heads * s.d_head, d, "o" in s.biases)
        layer += [(s.d_head,), (s.d_head,)] * s.qk_norm + [(s.n_heads,)] * s.sinks
    layer += norm * s.norms

    def size(shapes):
        return sum(math.prod(shape) for shape in shapes)

    ends = [(s.vocabulary, d), (s.n_positions, d), *norm, *norm * s.tokens_norm]
    if not s.tied:
        ends += linear(d, s.vocabulary, "head" in s.biases)
    dense = size(ends) + s.n_layers * size(layer) + (s.n_layers - s.n_sparse) * size(mlp(s.d_hidden))
    if not s.n_sparse:
        return dense, dense
    shared = size(mlp(s.d_shared)) if s.d_shared else 0
    router = size(linear(d, s.n_experts, "router" in s.biases))
    total, active = (dense + s.n_sparse * (router + shared + n * size(mlp(s.d_expert))) for n in (s.n_experts, s.top_k))
    return total, active


# %% parameters: a loop over layers
def parameters(config):
    shape = read(config)
    d, biases = shape.d_model, shape.biases
    count = shape.vocabulary * d + shape.n_positions * d
    if not shape.tied:
        count += shape.vocabulary * d
    if "head" in biases:
        count += shape.vocabulary
    count += (2 if shape.tokens_norm else 1) * shape.norm * d
    resting = 0
    for layer in range(shape.n_layers):
        count += shape.norms * shape.norm * d
        if shape.latent is not None:
            latent = shape.latent
            width = latent.d_nope + latent.d_rope
            if latent.q_rank:
                count += d * latent.q_rank + latent.q_rank + latent.q_rank * shape.n_heads * width
            else:
                count += d * shape.n_heads * width
            count += d * latent.kv_rank + d * latent.d_rope + latent.kv_rank
            count += latent.kv_rank * shape.n_heads * latent.d_nope + latent.kv_rank * shape.n_heads * latent.d_value
            count += shape.n_heads * latent.d_value * d
        else:
            for heads in (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads):
                count += d * heads * shape.d_head
                if "qkv" in biases:
                    count += heads * shape.d_head
            count += shape.n_heads * shape.d_head * d
            if "o" in biases:
                count += d
            if shape.qk_norm:
                count += 2 * shape.d_head
            if shape.sinks:
                count += shape.n_heads
        widths = [shape.d_hidden]
        if layer < shape.n_sparse:  # which layers they are makes no difference
            widths = [shape.d_expert] * shape.n_experts + [shape.d_shared] * bool(shape.d_shared)
            count += shape.n_experts * d
            if "router" in biases:
                count += shape.n_experts
        sizes = []
        for width in widths:
            size = 2 * d * width
            if shape.gated:
                size += d * width
            if "mlp" in biases:
                size += d + width + (width if shape.gated else 0)
            sizes.append(size)
        count += sum(sizes)
        if layer < shape.n_sparse:
            resting += sum(sizes[shape.top_k : shape.n_experts])
    return count, count - resting


# %% flops_per_token: a loop over layers
def flops_per_token(config, context, training=False):
    shape = read(config)
    _, n = parameters(config)
    if shape.n_positions:
        n -= shape.n_positions * shape.d_model
    if not shape.tied:
        n -= shape.vocabulary * shape.d_model
    flops = 2 * n
    for window in shape.windows:
        positions = context
        if window is not None and window < context:
            positions = window
        for _head in range(shape.n_heads):
            if shape.latent is None:
                flops += 2 * shape.d_head * positions + 2 * positions * shape.d_head
            else:
                flops += 2 * positions * (shape.latent.d_nope + shape.latent.d_rope)
                flops += 2 * positions * shape.latent.d_value
    if training:
        flops += 2 * flops
    return flops


# %% flops_per_token: forward and backward as a factor
def flops_per_token(config, context, training=False):
    s = read(config)
    if s.latent:
        key, value = s.latent.d_nope + s.latent.d_rope, s.latent.d_value
    else:
        key = value = s.d_head
    tables = s.n_positions * s.d_model + (1 - int(s.tied)) * s.vocabulary * s.d_model
    attention = sum(s.n_heads * (key + value) * (context if not w else min(w, context)) for w in s.windows)
    return (6 if training else 2) * (parameters(config)[1] - tables + attention)


# %% fits: step by step
def kv_bytes(config, length, batch=1, bits=16):
    shape = read(config)
    total_bits = 0
    for window in shape.windows:
        positions = length if window is None else min(length, window)
        if shape.latent is not None:
            total_bits += positions * (shape.latent.kv_rank + shape.latent.d_rope) * bits
        else:
            total_bits += positions * shape.n_kv_heads * shape.d_head * bits
            total_bits += positions * shape.n_kv_heads * shape.d_head * bits
    return batch * total_bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    shape = read(config)
    total, _ = parameters(config)
    weights = -int(-total * weight_bits // 8)
    widths = []
    if shape.n_sparse < shape.n_layers:
        widths.append(shape.d_hidden)
    if shape.n_sparse > 0:
        widths.append(shape.top_k * shape.d_expert + shape.d_shared)
    channels = 2 * shape.d_model + max(widths) * (2 if shape.gated else 1)
    tokens = length if length < 512 else 512
    busy = tokens * channels * 2 + shape.vocabulary * 4
    result = {"weights": weights, "cache": kv_bytes(config, length, batch, kv_bits), "activations": batch * busy}
    result["total"] = result["weights"] + result["cache"] + result["activations"]
    result["fits"] = result["total"] <= memory
    result["batch"] = 0
    if memory >= weights:
        result["batch"] = int((memory - weights) // (kv_bytes(config, length, bits=kv_bits) + busy))
    return result


# %% fits: one expression each
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    wide = (s.latent.kv_rank + s.latent.d_rope) if s.latent else (s.n_kv_heads * s.d_head * 2)
    return math.ceil(batch * wide * sum(min(w, length) if w else length for w in s.windows) * bits / 8)


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    hidden = max(s.d_hidden * (s.n_layers > s.n_sparse), (s.top_k * s.d_expert + s.d_shared) * (s.n_sparse > 0))
    busy = 4 * s.vocabulary + 2 * min(512, length) * (s.d_model + s.d_model + hidden + hidden * s.gated)
    weights, text = math.ceil(parameters(config)[0] * weight_bits / 8), kv_bytes(config, length, bits=kv_bits) + busy
    return dict(
        weights=weights,
        cache=kv_bytes(config, length, batch, kv_bits),
        activations=batch * busy,
        total=weights + batch * text,
        fits=weights + batch * text <= memory,
        batch=max(0, int((memory - weights) // text)),
    )


# %% decode_roofline: the share of experts that somebody needs
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s = read(config)
    total, active = parameters(config)
    computing = flops_per_token(config, 0) / 2  # the weights that compute for one token
    if total != active:
        all_experts = (total - active) * s.n_experts / (s.n_experts - s.top_k)
        spared = (1 - s.top_k / s.n_experts) ** batch
        computing += all_experts * (1 - spared) - all_experts * s.top_k / s.n_experts
    size = computing * weight_bits / 8 + batch * kv_bytes(config, context, 1, kv_bits)
    work = batch * flops_per_token(config, context)
    if size / bandwidth >= work / peak:
        bound, seconds = "memory", size / bandwidth
    else:
        bound, seconds = "compute", work / peak
    return dict(bytes=size, flops=work, seconds=seconds, tokens_per_second=batch / seconds, bound=bound)


# %% decode_roofline: expert by expert
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    shape = read(config)
    total, active = parameters(config)
    looked_up = shape.n_positions * shape.d_model
    if not shape.tied:
        looked_up += shape.vocabulary * shape.d_model
    weights = active - looked_up
    if shape.n_experts and shape.n_experts != shape.top_k:
        one = (total - active) / (shape.n_experts - shape.top_k)
        unused = 1.0
        for _ in range(batch):
            unused *= (shape.n_experts - shape.top_k) / shape.n_experts
        weights = weights - shape.top_k * one + shape.n_experts * (1 - unused) * one
    answer = {"bytes": weights / 8 * weight_bits + kv_bytes(config, context, batch=batch, bits=kv_bits)}
    answer["flops"] = flops_per_token(config, context) * batch
    times = {"memory": answer["bytes"] / bandwidth, "compute": answer["flops"] / peak}
    answer["bound"] = max(times, key=times.get)
    answer["seconds"] = times[answer["bound"]]
    answer["tokens_per_second"] = batch / answer["seconds"]
    return answer


# %% energy_and_cost: seconds and joules
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = 3 * flops_per_token(config, context) * tokens
    seconds = flops / peak / mfu
    kwh = seconds * watts * pue / 3.6e6
    return {
        "flops": flops,
        "device_hours": seconds / 3600,
        "kwh": kwh,
        "kg_co2": carbon * kwh,
        "cost": price * seconds / 3600,
    }


# %% energy_and_cost: everything a device-hour
def energy_and_cost(config, tokens, *, context=0, **plant):
    an_hour = plant["peak"] * plant["mfu"] * 60 * 60
    bill = {"flops": flops_per_token(config, context, True) * tokens}
    bill["device_hours"] = bill["flops"] / an_hour
    bill["kwh"] = bill["device_hours"] * (plant["watts"] * 1e-3) * plant["pue"]
    bill["kg_co2"] = bill["kwh"] * plant["carbon"]
    bill["cost"] = bill["device_hours"] * plant["price"]
    return bill


# %% recommend: one condition after the other
def recommend(models, need):
    answer = []
    for model in models:
        reasons = {}
        cache = need["context"] * model["kv_bytes"]
        size = model["parameters"] * need["weight_bits"] / 8 + cache
        speed = need["bandwidth"] / (model["active"] * need["weight_bits"] / 8 + cache)
        if model["shape"] not in TASKS[need["task"]]:
            reasons["task"] = (TASKS[need["task"]], model["shape"])
        if size > need["memory"]:
            reasons["memory"] = (size, need["memory"])
        if speed < need["tokens_per_second"]:
            reasons["speed"] = (need["tokens_per_second"], speed)
        if model["context"] < need["context"]:
            reasons["context"] = (need["context"], model["context"])
        missing = sorted(code for code in need["languages"] if code not in model["languages"])
        if missing:
            reasons["languages"] = (missing, sorted(model["languages"]))
        if need["use"] not in model["uses"]:
            reasons["licence"] = (need["use"], model["licence"])
        learning = model["parameters"] * ADAPTATION[need["adaptation"]]
        if learning > need["memory"]:
            reasons["adaptation"] = (learning, need["memory"])
        answer.append({"name": model["name"], "reasons": reasons, "bytes": size})
    answer.sort(key=lambda row: row["bytes"])
    answer.sort(key=lambda row: len(row["reasons"]))
    return answer


# %% recommend: two lists
def recommend(models, need):
    passing, failing = [], []
    for model in models:
        text = model["kv_bytes"] * need["context"]
        in_memory = text + model["parameters"] / 8 * need["weight_bits"]
        per_token = text + model["active"] / 8 * need["weight_bits"]
        missing = need["languages"].difference(model["languages"])
        tests = [
            ("task", TASKS[need["task"]].count(model["shape"]) > 0, TASKS[need["task"]], model["shape"]),
            ("memory", in_memory <= need["memory"], in_memory, need["memory"]),
            (
                "speed",
                need["tokens_per_second"] * per_token <= need["bandwidth"],
                need["tokens_per_second"],
                need["bandwidth"] / per_token,
            ),
            ("context", need["context"] <= model["context"], need["context"], model["context"]),
            ("languages", not missing, sorted(missing), sorted(model["languages"])),
            ("licence", need["use"] in model["uses"], need["use"], model["licence"]),
        ]
        learning = ADAPTATION[need["adaptation"]] * model["parameters"]
        tests.append(("adaptation", learning <= need["memory"], learning, need["memory"]))
        row = {"name": model["name"], "bytes": in_memory}
        row["reasons"] = {name: (asked, there) for name, passed, asked, there in tests if not passed}
        (failing if row["reasons"] else passing).append(row)
    by_size = lambda row: row["bytes"]
    return sorted(passing, key=by_size) + sorted(failing, key=lambda row: (len(row["reasons"]), row["bytes"]))
