# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% logit_lens: layer by layer, without hooks
@torch.no_grad()
def logit_lens(model, ids):
    x = model.model.embed_tokens(ids)
    seen = [x]
    for layer in model.model.layers:
        x = layer(x)
        seen += [x]
    return model.lm_head(model.model.norm(torch.stack(seen)))


# %% logit_lens: hooks on what the layers return
def logit_lens(model, ids):
    rows = []

    def note(part, inputs, output):
        rows.append(output.detach())

    handles = [model.model.embed_tokens.register_forward_hook(note)]
    for layer in model.model.layers:
        handles.append(layer.register_forward_hook(note))
    try:
        model(ids)
    finally:
        for handle in handles:
            handle.remove()
    with torch.inference_mode():
        lens = [F.linear(model.model.norm(x), model.lm_head.weight) for x in rows]
    return torch.stack(lens).clone()


# %% logit_lens: the norm by hand, text by text
def logit_lens(model, ids):
    def read(x):
        norm = model.model.norm
        return model.lm_head(x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + norm.eps) * norm.weight)

    texts = []
    with torch.no_grad():
        for text in ids:
            x = model.model.embed_tokens(text[None])
            depths = [read(x)]
            for layer in model.model.layers:
                x = layer(x)
                depths.append(read(x))
            texts.append(torch.stack(depths))
    return torch.cat(texts, dim=1)


# %% attention_rollout: a running product
def attention_rollout(weights):
    n_layers, batch, _, n, _ = weights.shape
    identity = torch.eye(n).to(weights.dtype)
    rollout = identity.repeat(batch, 1, 1)
    for layer in range(n_layers):
        mixed = torch.mean(weights[layer], dim=1) + identity
        rollout = torch.bmm(mixed / torch.sum(mixed, dim=2, keepdim=True), rollout)
    return rollout


# %% attention_rollout: from the top down, with einsum
def attention_rollout(weights):
    *lead, n = weights.shape
    maps = torch.einsum("lbhij->lbij", weights) / weights.shape[2]
    maps = maps + torch.diag(torch.ones(n, dtype=weights.dtype))
    maps = F.normalize(maps, p=1, dim=-1)
    found = maps[-1]
    for layer in reversed(maps[:-1].unbind()):
        found = torch.einsum("bij,bjk->bik", found, layer)
    return found


# %% attention_rollout: each text by itself, in float64
def attention_rollout(weights):
    texts = []
    for text in weights.double().unbind(1):
        chain = [layer.mean(0) + torch.eye(layer.shape[-1], dtype=torch.float64) for layer in text]
        product = torch.eye(text.shape[-1], dtype=torch.float64)
        for matrix in chain:
            product = (matrix / matrix.sum(dim=1)[:, None]) @ product
        texts.append(product)
    return torch.stack(texts).to(weights.dtype)


# %% mean_ablate: heads in a dimension of their own
def mean_ablate(model, ids, heads, reference):
    layers = list(model.model.layers)
    for at in heads:
        layer, head = at
        n_heads = layers[0].self_attn.o_proj.in_features // layers[0].self_attn.head_dim
        if not (layer in range(len(layers)) and head in range(n_heads)):
            raise ValueError("there is no head " + str(at))
    kept = [None for _ in layers]
    handles = []
    with torch.no_grad():
        for i, layer in enumerate(layers):
            width = layer.self_attn.head_dim

            def note(part, args, i=i, width=width):
                kept[i] = args[0].unflatten(-1, (-1, width)).flatten(0, 1).mean(0)

            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(note))
        model(reference)
        [handle.remove() for handle in handles]
        handles = []
        for i, layer in enumerate(layers):
            chosen = [head for at, head in heads if at == i]
            width = layer.self_attn.head_dim

            def swap(part, args, i=i, chosen=chosen, width=width):
                x = args[0].unflatten(-1, (-1, width)).clone()
                for head in chosen:
                    x[:, :, head] = kept[i][head]
                return (x.flatten(2),)

            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(swap))
        out = model(ids).logits
        [handle.remove() for handle in handles]
    return out


# %% mean_ablate: layer by layer, without hooks
@torch.no_grad()
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    n_heads = model.lm_head.in_features // width
    wrong = [
        (layer, head) for layer, head in heads if not (0 <= layer < len(model.model.layers) and 0 <= head < n_heads)
    ]
    if wrong:
        raise ValueError(f"The model lacks {wrong}.")

    def brought(attention, x):
        q, k, v = (
            proj(x).view(*x.shape[:2], n_heads, width).transpose(1, 2)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = rotated(q) @ rotated(k).transpose(2, 3) / math.sqrt(width)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -math.inf).softmax(-1) @ v

    def walk(text, means):
        x, found = model.model.embed_tokens(text), []
        for i, layer in enumerate(model.model.layers):
            out = brought(layer.self_attn, layer.input_layernorm(x))
            found.append(out.mean(dim=(0, 2)))
            for at, head in heads if means else []:
                if at == i:
                    out[:, head] = means[i][head]
            x = x + layer.self_attn.o_proj(out.transpose(1, 2).reshape(x.shape))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.lm_head(model.model.norm(x)), found

    _, means = walk(reference, None)
    return walk(ids, means)[0]


# %% mean_ablate: a mask over the columns
def mean_ablate(model, ids, heads, reference):
    layers = model.model.layers
    d_model, d_head = layers[0].self_attn.o_proj.in_features, layers[0].self_attn.head_dim
    out = torch.zeros(len(layers), d_model, dtype=torch.bool)
    for layer, head in heads:
        if min(layer, head) < 0 or layer > len(layers) - 1 or (head + 1) * d_head > d_model:
            raise ValueError(f"layer {layer}, head {head}: not in this model")
        out[layer, head * d_head : head * d_head + d_head] = True
    inputs = []
    with torch.inference_mode():
        hooks = [layer.self_attn.o_proj.register_forward_hook(lambda m, a, o: inputs.append(a[0])) for layer in layers]
        try:
            model(reference)
        finally:
            [hook.remove() for hook in hooks]
        means = [x.reshape(-1, d_model).sum(0) / (x.shape[0] * x.shape[1]) for x in inputs]

        def hook_of(i):
            return lambda m, args: (torch.where(out[i], means[i], args[0]),)

        hooks = [layer.self_attn.o_proj.register_forward_pre_hook(hook_of(i)) for i, layer in enumerate(layers)]
        try:
            logits = model(ids).logits
        finally:
            [hook.remove() for hook in hooks]
    return logits.clone()


# %% template_bias: with torch
def template_bias(score, templates, words, confidence=0.95):
    if len(templates) <= 1:
        raise ValueError(f"got {len(templates)} template(s); at least two are needed")
    scores = torch.tensor(
        [[[score(word.join(t.split("{}"))) for word in pair] for pair in words] for t in templates], dtype=torch.float64
    )
    d = (scores[..., 0] - scores[..., 1]).mean(1)
    t = t_quantile(1 - (1 - confidence) / 2, len(d) - 1)
    margin = t * (d.std() / len(d) ** 0.5).item()
    return d.mean().item(), d.mean().item() - margin, d.mean().item() + margin


# %% template_bias: sums by hand
def template_bias(score, templates, words, confidence=0.95):
    n, m = len(templates), len(words)
    if n in (0, 1):
        raise ValueError("templates: " + str(n))
    means = []
    for template in templates:
        total = 0.0
        for first, second in words:
            total += score(template.replace("{}", first))
            total -= score(template.replace("{}", second))
        means.append(total / m)
    centre = sum(means) / n
    variance = sum((x - centre) ** 2 for x in means) / (n - 1)
    reach = t_quantile(0.5 + confidence / 2, n - 1) * (variance / n) ** 0.5
    return (centre, centre - reach, centre + reach)


# %% monitor: every threshold, and the best by a key
def monitor(scores, bad, wanted):
    positives = int(bad.sum())
    if positives == 0:
        raise ValueError("no output is bad: recall is not defined")
    rows = [(0.0, 1.0, math.inf)]
    for threshold in scores.unique():
        flagged = bad[scores >= threshold].double()
        if flagged.mean().item() >= wanted:
            rows.append((flagged.sum().item() / positives, flagged.mean().item(), threshold.item()))
    recall, precision, threshold = max(rows)
    return threshold, precision, recall


# %% monitor: one sort and running sums
def monitor(scores, bad, wanted):
    if int(bad.long().sum()) == 0:
        raise ValueError("nothing bad")
    order = torch.argsort(scores, descending=True)
    s, hits = scores[order].tolist(), bad[order].long().cumsum(0).tolist()
    found = (math.inf, 1.0, 0.0)
    for i in range(len(s)):
        if i + 1 < len(s) and s[i + 1] == s[i]:
            continue
        if hits[i] / (i + 1) >= wanted and hits[i] / hits[-1] > found[2]:
            found = (s[i], hits[i] / (i + 1), hits[i] / hits[-1])
    return found


# %% monitor: lists
def monitor(scores, bad, wanted):
    pairs = sorted(zip(scores.tolist(), bad.tolist(), strict=True))
    total = sum(is_bad for _, is_bad in pairs)
    if not total:
        raise ValueError("Precision and recall need outputs that are bad, and there are none.")
    best = None
    for threshold, _ in pairs[::-1]:
        flagged = [is_bad for score, is_bad in pairs if score >= threshold]
        row = (threshold, sum(flagged) / len(flagged), sum(flagged) / total)
        if row[1] >= wanted and row[2] > 0 and (best is None or row[2] > best[2]):
            best = row
    return best or (math.inf, 1.0, 0.0)
