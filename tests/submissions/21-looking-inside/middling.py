# %% logit_lens
def logit_lens(model, ids):
    with torch.no_grad():
        x = model.model.embed_tokens(ids)
        out = []
        for layer in model.model.layers:
            x = layer(x)
            out.append(model.lm_head(model.model.norm(x)))
    return torch.stack(out)


# %% attention_rollout
def attention_rollout(weights):
    # 0.5 and 0.5 as in the paper
    a = 0.5 * weights.mean(2) + 0.5 * torch.eye(weights.shape[-1])
    result = a[0]
    for layer in a[1:]:
        result = layer @ result
    return result


# %% mean_ablate
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    handles = []
    for layer, head in heads:
        def zero(module, args, head=head):
            x = args[0].clone()
            x[:, :, head * width : (head + 1) * width] = 0
            return (x,)

        handles.append(model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zero))
    with torch.no_grad():
        logits = model(ids).logits
    for handle in handles:
        handle.remove()
    return logits


# %% template_bias
def template_bias(score, templates, words, confidence=0.95):
    differences = []
    for template in templates:
        for a, b in words:
            differences.append(score(template.replace("{}", a)) - score(template.replace("{}", b)))
    n = len(differences)
    if n < 2:
        raise ValueError(f"need at least 2 templates, got {n}")
    mean = statistics.mean(differences)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return mean, mean - half, mean + half
