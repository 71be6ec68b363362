# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% logit_lens: the norm is left out
# caught by: test_every_entry_goes_through_the_last_norm, test_the_last_entry_is_what_the_model_says
# says: The read-out is applied to the streams as they are: each should go through model.model.norm first.
def logit_lens(model, ids):
    with torch.no_grad():
        streams = [model.model.embed_tokens(ids)]
        for layer in model.model.layers:
            streams.append(layer(streams[-1]))
        return torch.stack([model.lm_head(x) for x in streams])


# %% logit_lens: the norm twice on the last entry
# caught by: test_the_last_entry_is_what_the_model_says
# says: The last entry goes through the norm twice, since what model.model returns has been through it already.
def logit_lens(model, ids):
    with torch.no_grad():
        streams = [model.model.embed_tokens(ids)]
        for layer in list(model.model.layers)[:-1]:
            streams.append(layer(streams[-1]))
        streams.append(model.model(ids))
        return torch.stack([model.lm_head(model.model.norm(x)) for x in streams])


# %% logit_lens: only the last entry is normed
# caught by: test_entry_i_is_read_off_the_stream_after_i_layers, test_every_entry_goes_through_the_last_norm
# says: Only the last entry goes through the norm: what is in the middle needs it as well.
def logit_lens(model, ids):
    with torch.no_grad():
        streams = [model.model.embed_tokens(ids)]
        for layer in model.model.layers:
            streams.append(layer(streams[-1]))
        streams[-1] = model.model.norm(streams[-1])
        return torch.stack([model.lm_head(x) for x in streams])


# %% logit_lens: the embeddings are left out
# caught by: test_there_is_an_entry_before_each_layer_and_one_after_the_last
# says: There is one entry for each layer: the one for the embeddings, before any layer, is missing.
def logit_lens(model, ids):
    with torch.no_grad():
        x, found = model.model.embed_tokens(ids), []
        for layer in model.model.layers:
            x = layer(x)
            found.append(model.lm_head(model.model.norm(x)))
        return torch.stack(found)


# %% logit_lens: what each layer adds
# caught by: test_entry_i_is_read_off_the_stream_after_i_layers
# says: The entries show what each layer adds to the stream, and not the stream after it.
def logit_lens(model, ids):
    with torch.no_grad():
        x = model.model.embed_tokens(ids)
        found = [x]
        for layer in model.model.layers:
            found.append(layer(x) - x)
            x = layer(x)
        return torch.stack([model.lm_head(model.model.norm(x)) for x in found])


# %% logit_lens: hooks on attention instead of the layer
# caught by: test_entry_i_is_read_off_the_stream_after_i_layers
# says: The entries are read off the output of self_attn, which is one summand of the stream and not the stream.
def logit_lens(model, ids):
    streams = [model.model.embed_tokens(ids)]
    hooks = [
        layer.self_attn.register_forward_hook(lambda part, args, out: streams.append(out))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(ids)
        for hook in hooks:
            hook.remove()
        return torch.stack([model.lm_head(model.model.norm(x)) for x in streams])


# %% logit_lens: hooks stay behind
# caught by: test_the_model_is_left_as_it_was
# says: The lens is right, but its hooks are never removed: they go on listening in every later run.
def logit_lens(model, ids):
    streams = []
    for part in [*model.model.layers, model.model.norm]:
        part.register_forward_pre_hook(lambda part, args: streams.append(args[0]))
    with torch.no_grad():
        model(ids)
        return torch.stack([model.lm_head(model.model.norm(x)) for x in streams[: len(model.model.layers) + 1]])


# %% logit_lens: gradients are kept
# caught by: test_the_model_is_left_as_it_was
# says: The lens is right, but the result drags the whole graph along: it should need no gradient.
def logit_lens(model, ids):
    x = model.model.embed_tokens(ids)
    found = [x]
    for layer in model.model.layers:
        x = layer(x)
        found.append(x)
    return torch.stack([model.lm_head(model.model.norm(x)) for x in found])


# %% logit_lens: read out with the embeddings
# caught by: test_the_last_entry_is_what_the_model_says, test_the_first_entry_is_read_off_the_embeddings
# says: The read-out is the table of embeddings, which is right only where the two are tied; use model.lm_head.
def logit_lens(model, ids):
    with torch.no_grad():
        streams = [model.model.embed_tokens(ids)]
        for layer in model.model.layers:
            streams.append(layer(streams[-1]))
        return torch.stack([model.model.norm(x) @ model.model.embed_tokens.weight.T for x in streams])


# %% logit_lens: probabilities instead of logits
# caught by: test_the_last_entry_is_what_the_model_says, test_the_first_entry_is_read_off_the_embeddings
# says: These are probabilities: logits are wanted, before the softmax.
def logit_lens(model, ids):
    with torch.no_grad():
        streams = [model.model.embed_tokens(ids)]
        for layer in model.model.layers:
            streams.append(layer(streams[-1]))
        return torch.stack([model.lm_head(model.model.norm(x)) for x in streams]).softmax(-1)


# %% logit_lens: the training mode is switched off for good
# caught by: test_the_model_is_left_as_it_was
# says: The lens is right, but it leaves the model in evaluation mode: put back what was there.
def logit_lens(model, ids):
    model.eval()
    with torch.no_grad():
        streams = [model.model.embed_tokens(ids)]
        for layer in model.model.layers:
            streams.append(layer(streams[-1]))
        return torch.stack([model.lm_head(model.model.norm(x)) for x in streams])


# %% logit_lens: the training mode is switched on afterwards, whatever it was
# caught by: test_the_model_is_left_as_it_was
# says: The lens is right, but afterwards the whole model is in one mode: each part should be in the mode it was in.
def logit_lens(model, ids):
    with torch.no_grad():
        streams, was = [model.model.embed_tokens(ids)], model.training
        model.eval()
        for layer in model.model.layers:
            streams.append(layer(streams[-1]))
        found = torch.stack([model.lm_head(model.model.norm(x)) for x in streams])
    model.train(was)
    return found


# %% logit_lens: all hooks are removed, whoever put them there
# caught by: test_the_model_is_left_as_it_was
# says: The lens is right, but it removes every hook that it finds: remove your own, by their handles.
def logit_lens(model, ids):
    streams = []
    listening = [*model.model.layers, model.model.norm]
    for part in listening:
        part.register_forward_pre_hook(lambda part, args: streams.append(args[0]))
    with torch.no_grad():
        model(ids)
        for part in listening:
            part._forward_pre_hooks.clear()
        return torch.stack([model.lm_head(model.model.norm(x)) for x in streams])


# %% logit_lens: the model's parameters are frozen
# caught by: test_the_model_is_left_as_it_was
# says: The lens is right, but the model can learn no more: its parameters require no gradient afterwards.
def logit_lens(model, ids):
    model.requires_grad_(False)
    streams = [model.model.embed_tokens(ids)]
    for layer in model.model.layers:
        streams.append(layer(streams[-1]))
    return torch.stack([model.lm_head(model.model.norm(x)) for x in streams])


# %% attention_rollout: multiplied in the wrong order
# caught by: test_maps_are_multiplied_from_the_last_layer_down_to_the_first
# says: The maps are multiplied from the first layer to the last: the first should stand at the right end.
def attention_rollout(weights):
    maps = weights.mean(2) + torch.eye(weights.shape[-1], dtype=weights.dtype)
    maps = maps / maps.sum(-1, keepdim=True)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = rollout @ layer
    return rollout


# %% attention_rollout: no residual connection
# caught by: test_one_layer_is_half_attention_and_half_itself, test_a_position_that_attends_to_nothing_keeps_itself
# says: The identity is not added, so nothing is kept of what goes round attention.
def attention_rollout(weights):
    maps = weights.mean(2)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout


# %% attention_rollout: not divided by the sum
# caught by: test_every_row_sums_to_one, test_one_layer_is_half_attention_and_half_itself
# says: The identity is added, but rows are not divided by their sum: they come to 2 in every layer.
def attention_rollout(weights):
    maps = weights.mean(2) + torch.eye(weights.shape[-1], dtype=weights.dtype)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout


# %% attention_rollout: always divided by 2
# caught by: test_every_row_sums_to_one, test_a_position_that_attends_to_nothing_keeps_itself
# says: Half and half is right only where a row sums to 1: divide each row by its own sum.
def attention_rollout(weights):
    maps = 0.5 * weights.mean(2) + 0.5 * torch.eye(weights.shape[-1], dtype=weights.dtype)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout


# %% attention_rollout: divided once, at the end
# caught by: test_every_row_sums_to_one
# says: Rows are divided by their sum only at the end: each layer's map should be, before they are multiplied.
def attention_rollout(weights):
    maps = weights.mean(2) + torch.eye(weights.shape[-1], dtype=weights.dtype)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout / rollout.sum(-1, keepdim=True)


# %% attention_rollout: each head by itself
# caught by: test_heads_are_averaged_within_their_layer
# says: Each head is rolled out by itself and the results are averaged: average the heads of a layer first.
def attention_rollout(weights):
    maps = weights + torch.eye(weights.shape[-1], dtype=weights.dtype)
    maps = maps / maps.sum(-1, keepdim=True)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout.mean(1)


# %% attention_rollout: the strongest head
# caught by: test_heads_are_averaged_within_their_layer
# says: Of the heads the largest weight is taken, and not their mean.
def attention_rollout(weights):
    maps = weights.amax(2) + torch.eye(weights.shape[-1], dtype=weights.dtype)
    maps = maps / maps.sum(-1, keepdim=True)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout


# %% attention_rollout: heads are added up
# caught by: test_heads_are_averaged_within_their_layer
# says: The heads are added up and not averaged, so attention outweighs the residual connection.
def attention_rollout(weights):
    maps = weights.sum(2) + torch.eye(weights.shape[-1], dtype=weights.dtype)
    maps = maps / maps.sum(-1, keepdim=True)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout


# %% attention_rollout: columns are divided instead of rows
# caught by: test_one_layer_is_half_attention_and_half_itself, test_every_row_sums_to_one
# says: Columns are divided by their sums: a row is what one position holds, so it is rows that sum to 1.
def attention_rollout(weights):
    maps = weights.mean(2) + torch.eye(weights.shape[-1], dtype=weights.dtype)
    maps = maps / maps.sum(-2, keepdim=True)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout


# %% attention_rollout: the layers are averaged
# caught by: test_maps_are_multiplied_from_the_last_layer_down_to_the_first
# says: The maps of the layers are averaged: they should be multiplied, since each mixes what the one before it mixed.
def attention_rollout(weights):
    maps = weights.mean(2) + torch.eye(weights.shape[-1], dtype=weights.dtype)
    return (maps / maps.sum(-1, keepdim=True)).mean(0)


# %% attention_rollout: the identity is added in place
# caught by: test_the_weights_that_are_rolled_out_stay_as_they_were
# says: The rollout is right, but the identity is added to the caller's own tensor.
def attention_rollout(weights):
    weights += torch.eye(weights.shape[-1], dtype=weights.dtype)
    maps = weights.mean(2)
    maps = maps / maps.sum(-1, keepdim=True)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout


# %% attention_rollout: always float32
# caught by: test_the_rollout_has_the_dtype_of_the_weights
# says: The rollout is right, but it comes as float32 whatever the weights are.
def attention_rollout(weights):
    maps = weights.float().mean(2) + torch.eye(weights.shape[-1])
    maps = maps / maps.sum(-1, keepdim=True)
    rollout = maps[0]
    for layer in maps[1:]:
        rollout = layer @ rollout
    return rollout


# %% mean_ablate: zeros instead of the mean
# caught by: test_the_heads_output_is_replaced_by_its_mean, test_the_mean_is_over_all_positions_of_all_texts
# says: The head's output is replaced by zeros, and not by its mean over the reference.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = 0.0
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: the mean over the text in question
# caught by: test_the_mean_knows_nothing_of_the_text_in_question, test_the_heads_output_is_replaced_by_its_mean
# says: The mean is taken over ids, the text in question: it should come from the reference.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(ids, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: a mean for each position
# caught by: test_the_heads_output_is_replaced_by_its_mean
# says: The mean is taken for each position by itself: it should be over all positions of all texts.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean(0)

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][:, columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: only the last position is replaced
# caught by: test_the_heads_output_is_replaced_by_its_mean
# says: The head is ablated at the last position of ids only: it should be at every position.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[:, -1, columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: every other column
# caught by: test_the_heads_output_is_replaced_by_its_mean
# says: The columns of a head are taken interleaved: each head has head_dim columns next to each other.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head, None, projections[0].in_features // width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: the whole layer
# caught by: test_the_heads_output_is_replaced_by_its_mean
# says: All heads of the layer are replaced, and not only the one that is named.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(None)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: the number of heads taken for the width
# caught by: test_the_heads_output_is_replaced_by_its_mean
# says: The columns begin at head times the number of heads: it should be head times head_dim.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * (12 // width), (head + 1) * (12 // width))
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: only the first head
# caught by: test_several_heads_are_ablated_together, test_without_any_head_positions_do_not_hear_of_each_other
# says: Only the first of the heads is ablated: all of them should be, together.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in list(heads)[:1]])


# %% mean_ablate: one head a layer
# caught by: test_several_heads_are_ablated_together
# says: Of two heads in one layer only the last is ablated. A dictionary by layer keeps one, and a hook that uses a loop's variable sees its last value.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in dict(heads).items()])


# %% mean_ablate: means taken while others are ablated
# caught by: test_several_heads_are_ablated_together
# says: A head's mean is taken while heads before it are ablated: all means belong to the intact model.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        done = []
        for layer, head in sorted(heads):
            run(reference, [*done, (layer, partial(listen, layer))])
            done.append((layer, partial(replace, layer, head)))
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: hooks stay behind
# caught by: test_the_model_says_afterwards_what_it_said_before
# says: The hooks are never removed: the model stays ablated in every later run.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            pass
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: a head that is not there is ablated silently
# caught by: test_a_head_that_is_not_there_is_refused
# says: A head that the model does not have raises no ValueError: its slice is empty, and nothing is ablated.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: negative numbers are counted from the end
# caught by: test_a_head_that_is_not_there_is_refused
# says: A negative layer or head raises no ValueError: both are counted from 0.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer >= len(projections) or head >= projections[0].in_features // width:
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: all hooks are removed, whoever put them there
# caught by: test_the_model_says_afterwards_what_it_said_before
# says: The ablation is right, but it removes every hook that it finds: remove your own, by their handles.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        for layer, hook in hooks:
            projections[layer].register_forward_pre_hook(hook)
        logits = model(text).logits
        for projection in projections:
            projection._forward_pre_hooks.clear()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: the whole model is put into one mode
# caught by: test_the_model_says_afterwards_what_it_said_before
# says: The ablation is right, but afterwards the whole model is in one mode: each part should be in the mode it was in.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        was = model.training
        model.eval()
        logits = model(text).logits
        model.train(was)
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: a layer that is not there
# caught by: test_a_head_that_is_not_there_is_refused
# says: A layer that the model does not have raises an IndexError: it should be a ValueError that names the pair.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if head >= projections[0].in_features // width:
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% mean_ablate: the output of o_proj
# caught by: test_the_heads_output_is_replaced_by_its_mean
# says: Columns of the *output* of o_proj are replaced: there the heads are mixed already, so take its input.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = F.linear(args[0], part.weight).mean((0, 1))

    def replace(layer, head, part, args, output):
        x = output.clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return x

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    with torch.no_grad():
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        hooks = [projections[layer].register_forward_hook(partial(replace, layer, head)) for layer, head in heads]
        logits = model(ids).logits
        for hook in hooks:
            hook.remove()
        return logits


# %% mean_ablate: gradients are kept
# caught by: test_the_model_says_afterwards_what_it_said_before
# says: The ablation is right, but the result requires a gradient.
def mean_ablate(model, ids, heads, reference):
    width = model.model.layers[0].self_attn.head_dim
    projections = [layer.self_attn.o_proj for layer in model.model.layers]
    for layer, head in heads:
        if layer not in range(len(projections)) or head not in range(projections[0].in_features // width):
            raise ValueError(f"no head {head} in layer {layer}")
    means = {}

    def listen(layer, part, args):
        means[layer] = args[0].mean((0, 1))

    def replace(layer, head, part, args):
        x = args[0].clone()
        columns = slice(head * width, (head + 1) * width)
        x[..., columns] = means[layer][columns]
        return (x,)

    def run(text, hooks):
        handles = [projections[layer].register_forward_pre_hook(hook) for layer, hook in hooks]
        logits = model(text).logits
        for handle in handles:
            handle.remove()
        return logits

    if True:
        run(reference, [(layer, partial(listen, layer)) for layer, _ in heads])
        return run(ids, [(layer, partial(replace, layer, head)) for layer, head in heads])


# %% template_bias: the normal quantile
# caught by: test_the_interval_is_students_for_paired_differences
# says: The quantile is that of the normal distribution (1.96): for few templates it has to be Student's.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = statistics.NormalDist().inv_cdf((1 + confidence) / 2) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: one degree of freedom too many
# caught by: test_the_interval_is_students_for_paired_differences
# says: The quantile has n degrees of freedom: n values around their own mean have n − 1.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: the standard deviation of a population
# caught by: test_the_interval_is_students_for_paired_differences
# says: The standard deviation is divided by n: with the mean taken from the same numbers it should be n − 1.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.pstdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: not divided by the root of n
# caught by: test_the_interval_is_students_for_paired_differences
# says: The interval is that of a single template: that of the mean is narrower by √n.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values)
    return mean, mean - half, mean + half


# %% template_bias: divided by n
# caught by: test_the_interval_is_students_for_paired_differences
# says: The standard deviation is divided by n: the mean's is s/√n.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / n
    return mean, mean - half, mean + half


# %% template_bias: one side only
# caught by: test_the_interval_is_students_for_paired_differences, test_the_confidence_that_is_asked_for_is_given
# says: The quantile leaves all of the rest on one side: half of it belongs above and half below.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile(confidence, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: the confidence is always 95 %
# caught by: test_the_confidence_that_is_asked_for_is_given
# says: The interval is one of 95 % whatever confidence is asked for.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: not paired
# caught by: test_what_a_pair_shares_cancels, test_the_interval_is_students_for_paired_differences
# says: The spreads of first and second words are taken apart and added: the difference of each pair comes first.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values, ones, others = [], [], []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        ones.append(statistics.fmean(first))
        others.append(statistics.fmean(second))
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = (
        t_quantile((1 + confidence) / 2, n - 1)
        * math.sqrt(statistics.variance(ones) + statistics.variance(others))
        / math.sqrt(n)
    )
    return mean, mean - half, mean + half


# %% template_bias: every pair is a witness
# caught by: test_several_pairs_in_a_template_are_one_witness
# says: n counts templates times pairs: pairs in one template share its sentence, so average them first.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values += [a - b for a, b in zip(first, second, strict=True)]
    n = len(values)
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: intervals over pairs
# caught by: test_several_pairs_in_a_template_are_one_witness
# says: The spread is taken over pairs of words: n is the number of templates.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    filled = [[score(t.replace("{}", a)) - score(t.replace("{}", b)) for t in templates] for a, b in words]
    values = [statistics.fmean(row) for row in filled] if len(words) > 1 else filled[0]
    n = len(values)
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: a template that is repeated counts once
# caught by: test_several_pairs_in_a_template_are_one_witness
# says: The differences are kept by template, so that one which is given twice counts once.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = {
        t: statistics.fmean(score(t.replace("{}", a)) - score(t.replace("{}", b)) for a, b in words) for t in templates
    }
    n = len(values)
    mean = statistics.fmean(values.values())
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values.values()) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: pairs are kept by their first word
# caught by: test_several_pairs_in_a_template_are_one_witness
# says: The pairs are made a dictionary: of those with the same first word only the last is left.
def template_bias(score, templates, words, confidence=0.95):
    n, words = len(templates), dict(words)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = [
        statistics.fmean(score(t.replace("{}", a)) - score(t.replace("{}", b)) for a, b in words.items())
        for t in templates
    ]
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: second minus first
# caught by: test_the_mean_is_of_the_first_word_minus_the_second
# says: The difference is the second word minus the first: it should be the other way round.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(second) - statistics.fmean(first))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: only the first gap
# caught by: test_every_gap_is_filled_and_other_braces_stay
# says: Only the first gap of a template is filled: all of them should be.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a, 1)) for a, _ in words]
        second = [score(template.replace("{}", b, 1)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: str.format
# caught by: test_every_gap_is_filled_and_other_braces_stay
# says: str.format gives every brace a meaning and wants a word for each gap: only {} is special here.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.format(a)) for a, _ in words]
        second = [score(template.format(b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: one template has an interval without width
# caught by: test_one_template_has_no_interval
# says: A single template gets an interval of no width, as if it were certain: raise a ValueError.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values) if n else 0.0
    if n < 2:
        return mean, mean, mean
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: the absolute difference
# caught by: test_the_mean_is_of_the_first_word_minus_the_second, test_swapping_the_words_turns_the_interval_round
# says: The differences are taken without their sign, so biases in both directions add up.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(abs(statistics.fmean(first) - statistics.fmean(second)))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean - half, mean + half


# %% template_bias: low and high exchanged
# caught by: test_the_interval_is_students_for_paired_differences
# says: low and high have changed places.
def template_bias(score, templates, words, confidence=0.95):
    n = len(templates)
    if n < 2:
        raise ValueError(f"{n} templates are too few")
    values = []
    for template in templates:
        first = [score(template.replace("{}", a)) for a, _ in words]
        second = [score(template.replace("{}", b)) for _, b in words]
        values.append(statistics.fmean(first) - statistics.fmean(second))
    mean = statistics.fmean(values)
    half = t_quantile((1 + confidence) / 2, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return mean, mean + half, mean - half


# %% monitor: it stops at the first threshold that misses
# caught by: test_precision_may_rise_again
# says: The search ends at the first threshold below the wanted precision: further down it may be reached again.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if precision < wanted:
            break
        if recall > best[2]:
            best = (threshold, precision, recall)
    return best


# %% monitor: flagged above the threshold only
# caught by: test_the_largest_recall_at_the_wanted_precision_is_found
# says: Outputs are flagged above the threshold: those whose score equals it should be flagged as well.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores > threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / max(1, flagged.sum().item()), hits / bad.sum().item()
        if precision >= wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best


# %% monitor: the most precise threshold
# caught by: test_the_largest_recall_at_the_wanted_precision_is_found
# says: The threshold is the most precise one: any precision that is enough will do, and recall decides.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if precision >= wanted and (best[2] == 0 or precision > best[1]):
            best = (threshold, precision, recall)
    return best


# %% monitor: precision and recall exchanged
# caught by: test_the_largest_recall_at_the_wanted_precision_is_found
# says: Precision and recall have changed places: precision is a share of the flagged, recall of the bad.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if precision >= wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best[0], best[2], best[1]


# %% monitor: wanted is taken for the recall
# caught by: test_the_largest_recall_at_the_wanted_precision_is_found
# says: The wanted value is held against the recall: it is the precision that has to reach it.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if recall >= wanted and precision > best[1] * (best[2] > 0):
            best = (threshold, precision, recall)
    return best


# %% monitor: the lowest threshold with that recall
# caught by: test_the_threshold_is_the_highest_with_that_recall
# says: Of the thresholds with the same recall the lowest is taken: it has more false alarms than need be.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if precision >= wanted and recall >= best[2] and hits:
            best = (threshold, precision, recall)
    return best


# %% monitor: strictly more than wanted
# caught by: test_a_precision_that_is_just_reached_is_enough
# says: A precision equal to the wanted one is refused: at least means that it is enough.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if precision > wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best


# %% monitor: ties are cut
# caught by: test_outputs_with_the_same_score_are_flagged_together
# says: Outputs are counted one by one from the top, through the middle of ties: equal scores are flagged together.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    hits = 0
    order = scores.argsort(descending=True, stable=True).tolist()
    for n, i in enumerate(order, 1):
        hits += bad[i].item()
        threshold, precision, recall = scores[i].item(), hits / n, hits / bad.sum().item()
        if precision >= wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best


# %% monitor: a precision of 0 where nothing is flagged
# caught by: test_a_precision_out_of_reach_flags_nothing
# says: Where nothing is flagged the precision is 1 by convention, and not 0.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 0.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if precision >= wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best


# %% monitor: no ValueError
# caught by: test_without_anything_bad_there_is_no_recall
# says: Where nothing is bad a recall is returned all the same: there is nothing to recall, so raise a ValueError.
def monitor(scores, bad, wanted):
    if not bad.any():
        return math.inf, 1.0, 0.0
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if precision >= wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best


# %% monitor: thresholds on a grid
# caught by: test_the_largest_recall_at_the_wanted_precision_is_found
# says: Thresholds are tried on a grid from 0 to 1: scores may lie anywhere, and the threshold is one of them.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in torch.linspace(1, 0, 101).tolist():
        flagged = scores >= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / max(1, flagged.sum().item()), hits / bad.sum().item()
        if precision >= wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best


# %% monitor: low scores are suspicious
# caught by: test_the_largest_recall_at_the_wanted_precision_is_found
# says: Outputs at or below the threshold are flagged: the higher a score, the more suspicious.
def monitor(scores, bad, wanted):
    if not bad.any():
        raise ValueError("nothing is bad")
    best = (math.inf, 1.0, 0.0)
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores <= threshold
        hits = (flagged & bad).sum().item()
        precision, recall = hits / flagged.sum().item(), hits / bad.sum().item()
        if precision >= wanted and recall > best[2]:
            best = (threshold, precision, recall)
    return best
