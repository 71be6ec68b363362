# %% a context for hooks
from contextlib import contextmanager


@contextmanager
def hooked(pairs):
    """Pre-hooks on modules, for as long as the with lasts."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# %% logit_lens
def logit_lens(model, ids):
    streams = []

    def keep(module, args):
        streams.append(args[0])

    parts = list(model.model.layers) + [model.model.norm]
    with torch.no_grad(), hooked([(part, keep) for part in parts]):
        model(ids)
    with torch.no_grad():
        logits = [model.lm_head(model.model.norm(stream)) for stream in streams]
    return torch.stack(logits, dim=0)


# %% attention_rollout
def attention_rollout(weights):
    n_layers, batch, n_heads, n, _ = weights.shape
    identity = torch.eye(n, dtype=weights.dtype).expand(batch, n, n)
    rollout = identity
    for layer in weights:
        mixed = layer.mean(dim=1) + identity
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        rollout = mixed @ rollout
    return rollout


# %% mean_ablate
def mean_ablate(model, ids, heads, reference):
    attentions = [layer.self_attn for layer in model.model.layers]
    for layer, head in heads:
        if layer < 0 or layer >= len(attentions):
            raise ValueError(f"head {head} of layer {layer}: the model has only {len(attentions)} layers")
        n_heads = attentions[layer].o_proj.in_features // attentions[layer].head_dim
        if head < 0 or head >= n_heads:
            raise ValueError(f"head {head} of layer {layer}: a layer has only {n_heads} heads")

    inputs = {}

    def listener(layer):
        def hook(module, args):
            inputs[layer] = args[0]

        return hook

    with torch.no_grad(), hooked([(a.o_proj, listener(i)) for i, a in enumerate(attentions)]):
        model(reference)
    means = {layer: x.flatten(0, 1).mean(dim=0) for layer, x in inputs.items()}

    def muffler(layer):
        width = attentions[layer].head_dim
        columns = torch.zeros_like(means[layer], dtype=torch.bool)
        for at, head in heads:
            if at == layer:
                columns[head * width : (head + 1) * width] = True

        def hook(module, args):
            return (torch.where(columns, means[layer], args[0]),)

        return hook

    with torch.no_grad(), hooked([(attentions[i].o_proj, muffler(i)) for i in {layer for layer, _ in heads}]):
        return model(ids).logits


# %% template_bias
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"with {n} template(s) there is no spread to estimate; use two or more")

    def difference(template):
        gaps = [score(template.replace("{}", a)) - score(template.replace("{}", b)) for a, b in words]
        return sum(gaps) / len(gaps)

    found = [difference(template) for template in templates]
    mean = sum(found) / n
    standard_error = statistics.stdev(found) / n**0.5
    t = t_quantile(1 - (1 - confidence) / 2, n - 1)
    return mean, mean - t * standard_error, mean + t * standard_error


# %% monitor
def monitor(scores, bad, wanted):
    n_bad = bad.sum().item()
    if n_bad == 0:
        raise ValueError("there is no bad output here, so recall is not defined")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        caught = (flagged & bad).sum().item()
        precision, recall = caught / flagged.sum().item(), caught / n_bad
        if precision >= wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best
