# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% CrossAttention: keys and values from x
# caught by: test_it_is_attention_of_x_to_memory, test_only_queries_come_from_x, test_nothing_is_causal_between_two_texts
# says: Keys and values come from x, so this is self-attention: memory is never read.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None and position_bias.shape[-1] == n:
            scores = scores + position_bias
        if mask is not None and mask.shape[-1] == n:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).reshape(b, n, d))


# %% CrossAttention: queries from memory
# caught by: test_it_is_attention_of_x_to_memory, test_only_queries_come_from_x
# says: Queries come from memory and keys and values from x: the two texts have changed places.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(memory), self.k_proj(x), self.v_proj(x)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias.mT
        if mask is not None:
            scores = scores.masked_fill(~mask.mT, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: values from x
# caught by: test_it_is_attention_of_x_to_memory
# says: Keys come from memory but values from x: both belong to the text that answers.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(x if x.shape == memory.shape else memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: causal between two texts
# caught by: test_nothing_is_causal_between_two_texts, test_it_is_attention_of_x_to_memory
# says: The attention to memory is causal, so that the first words of a translation see only the first of the source.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        mask = causal if mask is None else mask & causal
        scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: always divided by √d_head
# caught by: test_the_scale_multiplies_the_scores
# says: The scores are divided by √d_head whatever scale is: with scale=1.0, as in T5, they stay as they are.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: never divided
# caught by: test_it_is_attention_of_x_to_memory, test_the_scale_multiplies_the_scores
# says: scale=None stands for 1/√d_head, and here the scores are not scaled at all.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale or 1.0
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = self.scale * q @ k.mT
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: √d_model instead of √d_head
# caught by: test_it_is_attention_of_x_to_memory
# says: The scores are divided by √d_model; each head works with d_head channels.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, d_model**-0.5 if scale is None else scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = self.scale * q @ k.mT
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: the bias scaled too
# caught by: test_the_position_bias_is_added_to_the_scores
# says: The position bias is scaled along with q·k: it should be added after the scaling.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT
        if position_bias is not None:
            scores = scores + position_bias
        scores = scores * (self.scale or q.shape[-1] ** -0.5)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: the bias forgotten
# caught by: test_the_position_bias_is_added_to_the_scores
# says: position_bias is accepted and never used.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.o_proj(heads.transpose(1, 2).flatten(-2))


# %% CrossAttention: True means "padding"
# caught by: test_the_mask_decides_which_places_are_seen, test_padding_has_no_influence
# says: The mask is read the other way round: in this course True means "may attend".
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: NaN where nothing may be seen
# caught by: test_a_query_that_may_attend_to_nothing_gets_zeros
# says: A query that may attend to nothing gives NaN: the softmax of nothing but −∞ is 0/0.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: a mean where nothing may be seen
# caught by: test_a_query_that_may_attend_to_nothing_gets_zeros
# says: Blocked scores are set to −10⁹ and nothing more, so that a query that may attend to nothing takes a mean of all.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: 10,000 taken away from hidden scores
# caught by: test_padding_has_no_influence
# says: Hidden scores get 10,000 taken away, and a score can be larger than that: use −∞.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        b, n, d = x.shape
        projected = (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        q, k, v = (p.view(b, -1, self.n_heads, d // self.n_heads).transpose(1, 2) for p in projected)
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores - 1e4 * ~mask
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


# %% CrossAttention: the output is zeroed, not the heads
# caught by: test_a_query_that_may_attend_to_nothing_gets_zeros
# says: Zeros stand after o_proj where a query may attend to nothing: its heads give zeros, and o_proj adds its bias.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        b, n, d = x.shape
        projected = (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        q, k, v = (p.view(b, -1, self.n_heads, d // self.n_heads).transpose(1, 2) for p in projected)
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0)
        out = self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))
        if mask is not None:
            out = out * mask.expand(scores.shape).any(-1).any(1)[..., None]
        return out


# %% CrossAttention: dropout
# caught by: test_the_layer_leaves_its_inputs_alone
# says: There is dropout on the weights: in training the output is another one each time.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        b, n, d = x.shape
        projected = (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        q, k, v = (p.view(b, -1, self.n_heads, d // self.n_heads).transpose(1, 2) for p in projected)
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1)
        if mask is not None:
            weights = weights.masked_fill(~mask, 0)
        return self.o_proj((F.dropout(weights, 0.1, self.training) @ v).transpose(1, 2).reshape(b, n, d))


# %% CrossAttention: heads cut without a transpose
# caught by: test_it_is_attention_of_x_to_memory, test_only_queries_come_from_x
# says: The heads are cut by reshaping straight to (batch, n_heads, n, d_head), which mixes positions.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        b, n, d = x.shape
        d_head = d // self.n_heads
        q = self.q_proj(x).reshape(b, self.n_heads, n, d_head)
        k, v = (p(memory).reshape(b, self.n_heads, -1, d_head) for p in (self.k_proj, self.v_proj))
        scores = q @ k.mT * (self.scale or d_head**-0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).reshape(b, n, d))


# %% CrossAttention: no last projection
# caught by: test_the_state_dict_holds_four_projections
# says: o_proj is missing: nothing mixes what the heads brought.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(3))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2)


# %% CrossAttention: biases always
# caught by: test_the_state_dict_holds_four_projections
# says: The projections always have biases: only with bias=True should they.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% CrossAttention: memory detached
# caught by: test_gradients_reach_both_texts_and_all_weights
# says: No gradient flows into memory, so that the encoder never learns.
class CrossAttention(nn.Module):
    def __init__(self, d_model, n_heads, bias=False, scale=None):
        super().__init__()
        self.n_heads, self.scale = n_heads, scale
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=bias) for _ in range(4))

    def forward(self, x, memory, mask=None, position_bias=None):
        memory = memory.detach()
        q, k, v = self.q_proj(x), self.k_proj(memory), self.v_proj(memory)
        q, k, v = (y.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.mT * (self.scale or q.shape[-1] ** -0.5)
        if position_bias is not None:
            scores = scores + position_bias
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return self.o_proj((scores.softmax(-1).nan_to_num() @ v).transpose(1, 2).flatten(-2))


# %% EncoderLayer: always pre-norm
# caught by: test_in_berts_style_it_is_berts_layer
# says: The norms come before the sub-layers in both styles; in BERT's they come after each sum.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        h = self.self_attention_norm(x)
        x = x + self.self_attention(h, h, mask, position_bias)
        return x + self.feed_forward(self.feed_forward_norm(x))


# %% EncoderLayer: always post-norm
# caught by: test_in_t5s_style_it_is_t5s_encoder_layer
# says: The norms come after the sums in both styles; in T5's they come before each sub-layer.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% EncoderLayer: divided by √d_head in T5's style
# caught by: test_in_t5s_style_it_is_t5s_encoder_layer
# says: The scale of the style is not passed on, so that T5's scores are divided by √d_head.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, mask, position_bias)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% EncoderLayer: only the queries are normed
# caught by: test_in_t5s_style_it_is_t5s_encoder_layer
# says: Queries come from the normed vectors and keys and values from the bare ones: with pre_norm all three are normed.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        if self.pre_norm:
            x = x + self.self_attention(self.self_attention_norm(x), x, mask, position_bias)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% EncoderLayer: the residual carries normed vectors
# caught by: test_in_t5s_style_it_is_t5s_encoder_layer
# says: The residual adds the normed x; with pre_norm it carries the bare one past the sub-layer.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        if self.pre_norm:
            x = self.self_attention_norm(x)
            x = x + self.self_attention(x, x, mask, position_bias)
            x = self.feed_forward_norm(x)
            return x + self.feed_forward(x)
        x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% EncoderLayer: the second norm forgotten
# caught by: test_in_t5s_style_it_is_t5s_encoder_layer, test_in_berts_style_it_is_berts_layer
# says: feed_forward_norm is made and never used.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, mask, position_bias)
        else:
            x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        return x + self.feed_forward(x)


# %% EncoderLayer: no residuals
# caught by: test_in_t5s_style_it_is_t5s_encoder_layer, test_in_berts_style_it_is_berts_layer
# says: There are no residual connections: each sub-layer replaces x instead of adding to it.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        if self.pre_norm:
            h = self.self_attention_norm(x)
            return self.feed_forward(self.feed_forward_norm(self.self_attention(h, h, mask, position_bias)))
        x = self.self_attention_norm(self.self_attention(x, x, mask, position_bias))
        return self.feed_forward_norm(self.feed_forward(x))


# %% EncoderLayer: the mask and the bias stay outside
# caught by: test_the_encoder_obeys_its_padding_mask, test_the_encoder_adds_its_position_bias
# says: The mask and the position bias are accepted and not passed on to the attention.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% EncoderLayer: causal
# caught by: test_an_encoder_looks_both_ways, test_in_t5s_style_it_is_t5s_encoder_layer
# says: The self-attention is causal, as in a decoder: an encoder looks both ways.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        mask = causal if mask is None else mask & causal
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, mask, position_bias)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% EncoderLayer: both sub-layers in parallel
# caught by: test_in_t5s_style_it_is_t5s_encoder_layer
# says: Attention and feed-forward both read the same x and are added together: the second should read what the first made.
class EncoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, mask=None, position_bias=None):
        if self.pre_norm:
            h = self.self_attention_norm(x)
            return x + self.self_attention(h, h, mask, position_bias) + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: cross-attention forgotten
# caught by: test_the_decoder_layer_has_three_sublayers_with_a_norm_each, test_every_position_sees_all_of_memory
# says: There is no cross-attention: memory is never read, and this is the layer of a GPT.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.self_attention_norm = chosen.norm(d_model)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.feed_forward_norm = chosen.norm(d_model)

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: cross-attention first
# caught by: test_in_t5s_style_it_is_t5s_decoder_layer
# says: The cross-attention comes before the self-attention: the order is self-attention, cross-attention, feed-forward.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.pre_norm:
            x = x + self.cross_attention(self.cross_attention_norm(x), memory, memory_mask)
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory, memory_mask))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: self-attention without a mask
# caught by: test_a_decoder_sees_only_its_own_past
# says: The self-attention is not causal: while it is trained, it copies the next word instead of predicting it.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, None, position_bias)
            x = x + self.cross_attention(self.cross_attention_norm(x), memory, memory_mask)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, None, position_bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory, memory_mask))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: cross-attention causal too
# caught by: test_every_position_sees_all_of_memory
# says: The causal mask is on the cross-attention as well: every position may see all of the source.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        between = torch.ones(x.shape[1], memory.shape[1], dtype=torch.bool).tril()
        memory_mask = between if memory_mask is None else memory_mask & between
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            x = x + self.cross_attention(self.cross_attention_norm(x), memory, memory_mask)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory, memory_mask))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: memory asks, x answers
# caught by: test_in_t5s_style_it_is_t5s_decoder_layer
# says: In the cross-attention queries, keys and values all come from x: memory is handed over and not read.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            h = self.cross_attention_norm(x)
            x = x + self.cross_attention(h, h, causal)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, x, causal))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: memory normed
# caught by: test_in_t5s_style_it_is_t5s_decoder_layer
# says: The decoder norms memory once more: it comes from the encoder ready for use.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            h = self.cross_attention_norm(x)
            x = x + self.cross_attention(h, self.cross_attention_norm(memory), memory_mask)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory, memory_mask))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: the cross-attention's norm forgotten
# caught by: test_in_t5s_style_it_is_t5s_decoder_layer, test_in_berts_style_each_sum_is_normed
# says: cross_attention_norm is made and never used.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            x = x + self.cross_attention(x, memory, memory_mask)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        x = x + self.cross_attention(x, memory, memory_mask)
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: the memory mask on the self-attention
# caught by: test_the_memory_mask_hides_padding_of_the_source
# says: The memory mask is given to the self-attention: it belongs to the cross-attention.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if memory_mask is not None and memory_mask.shape[-1] == x.shape[1]:
            mask = mask & memory_mask
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, mask, position_bias)
            x = x + self.cross_attention(self.cross_attention_norm(x), memory)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, mask, position_bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: the position bias between the texts too
# caught by: test_the_position_bias_is_for_the_self_attention
# says: The position bias is given to the cross-attention as well: there are no distances between two texts.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        between = position_bias if x.shape[1] == memory.shape[1] else None
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            x = x + self.cross_attention(self.cross_attention_norm(x), memory, memory_mask, between)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory, memory_mask, between))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: the norms swapped
# caught by: test_in_t5s_style_it_is_t5s_decoder_layer, test_in_berts_style_each_sum_is_normed
# says: self_attention_norm and cross_attention_norm have changed places.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias, scale=chosen.scale)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.pre_norm:
            h = self.cross_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            x = x + self.cross_attention(self.self_attention_norm(x), memory, memory_mask)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.cross_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        x = self.self_attention_norm(x + self.cross_attention(x, memory, memory_mask))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% DecoderLayer: both divided by √d_head in T5's style
# caught by: test_in_t5s_style_it_is_t5s_decoder_layer
# says: The scale of the style is not passed on, so that T5's scores are divided by √d_head.
class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_heads, d_hidden, style="t5"):
        super().__init__()
        chosen = STYLES[style]
        self.pre_norm = chosen.pre_norm
        self.self_attention = CrossAttention(d_model, n_heads, bias=chosen.bias)
        self.cross_attention = CrossAttention(d_model, n_heads, bias=chosen.bias)
        self.feed_forward = FeedForward(d_model, d_hidden, chosen)
        self.self_attention_norm, self.cross_attention_norm, self.feed_forward_norm = (
            chosen.norm(d_model) for _ in range(3)
        )

    def forward(self, x, memory, memory_mask=None, position_bias=None):
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.pre_norm:
            h = self.self_attention_norm(x)
            x = x + self.self_attention(h, h, causal, position_bias)
            x = x + self.cross_attention(self.cross_attention_norm(x), memory, memory_mask)
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.self_attention_norm(x + self.self_attention(x, x, causal, position_bias))
        x = self.cross_attention_norm(x + self.cross_attention(x, memory, memory_mask))
        return self.feed_forward_norm(x + self.feed_forward(x))


# %% relative_position_bucket: the future in the first half
# caught by: test_in_an_encoder_the_future_has_the_second_half
# says: The future has the first half of the buckets; the past should have it.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance < 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: the sign reversed
# caught by: test_near_distances_have_a_bucket_each, test_in_a_decoder_the_future_is_in_bucket_0
# says: The sign of the distance is read the other way round: negative means that the key is in the past.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    distance = -distance
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance > 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: 0 counted as the future
# caught by: test_in_an_encoder_the_future_has_the_second_half
# says: The distance 0 is in the second half: it belongs to the first.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance >= 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: the buckets not halved
# caught by: test_in_an_encoder_the_future_has_the_second_half
# says: Each direction has all the buckets: bidirectional, each gets half of them.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        offset = (distance > 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: one half for both directions
# caught by: test_in_an_encoder_the_future_has_the_second_half
# says: Past and future share their buckets, so that the encoder cannot tell left from right.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    if bidirectional:
        n_buckets //= 2
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: base 2
# caught by: test_far_distances_share_buckets_by_their_logarithm
# says: The logarithms have different bases, 2 above and e below: it must be the same one.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance > 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log2(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: the logarithm of max_distance alone
# caught by: test_far_distances_share_buckets_by_their_logarithm
# says: The logarithm is divided by ln(max_distance): it should be ln(max_distance / m).
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance > 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance) * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: rounded to the nearest
# caught by: test_far_distances_share_buckets_by_their_logarithm
# says: The logarithm is rounded to the nearest bucket: it should be rounded down.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance > 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = (
        exact
        + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).round().long()
    )
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: no last bucket
# caught by: test_what_is_beyond_the_maximum_is_in_the_last_bucket
# says: Distances beyond max_distance get buckets that do not exist: all of them belong in the last one.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance > 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far)


# %% relative_position_bucket: absolute distances in a decoder
# caught by: test_in_a_decoder_the_future_is_in_bucket_0
# says: In a decoder the future gets the buckets of the past: it should be in bucket 0.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance > 0) * n_buckets
    steps = distance.abs()
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))


# %% relative_position_bucket: the dtype of the distances
# caught by: test_buckets_have_the_shape_of_the_distances
# says: The buckets take the dtype of the distances; they are int64 whatever integers come in.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    offset = 0
    if bidirectional:
        n_buckets //= 2
        offset = (distance > 0) * n_buckets
        steps = distance.abs()
    else:
        steps = (-distance).clamp(min=0)
    exact = n_buckets // 2
    far = exact + (torch.log(steps.clamp(min=1) / exact) / math.log(max_distance / exact) * (n_buckets - exact)).long()
    return (offset + torch.where(steps < exact, steps, far.clamp(max=n_buckets - 1))).to(distance.dtype)


# %% relative_position_bucket: linear
# caught by: test_far_distances_share_buckets_by_their_logarithm
# says: Every distance has a bucket of its own until they are used up: from the half on they should grow logarithmically.
def relative_position_bucket(distance, bidirectional, n_buckets=32, max_distance=128):
    if bidirectional:
        half = n_buckets // 2
        return (distance > 0) * half + distance.abs().clamp(max=half - 1)
    return (-distance).clamp(0, n_buckets - 1)


# %% mask_tokens: 80 % of all tokens
# caught by: test_what_is_not_chosen_stays
# says: 80 % of all tokens become the mask: it should be 80 % of the chosen ones.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    inputs = torch.where(random_kind < 0.9, random_ids, ids)
    return inputs.masked_fill(random_kind < 0.8, mask_id), ids.masked_fill(~chosen, -100)


# %% mask_tokens: labels everywhere
# caught by: test_labels_are_the_chosen_tokens_and_nothing_else
# says: Every token is a label, so that the model is mostly trained to copy: only chosen tokens have one.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    inputs = torch.where(chosen & (random_kind < 0.9), random_ids, ids)
    return inputs.masked_fill(chosen & (random_kind < 0.8), mask_id), ids.clone()


# %% mask_tokens: labels only where the mask stands
# caught by: test_labels_are_the_chosen_tokens_and_nothing_else
# says: Chosen tokens that were replaced or kept have no label: all chosen tokens are to be guessed.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    inputs = torch.where(chosen & (random_kind < 0.9), random_ids, ids)
    inputs = inputs.masked_fill(chosen & (random_kind < 0.8), mask_id)
    return inputs, ids.masked_fill(inputs != mask_id, -100)


# %% mask_tokens: labels of the corrupted text
# caught by: test_labels_are_the_chosen_tokens_and_nothing_else
# says: The labels are taken from the corrupted text: they should be the original tokens.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    inputs = torch.where(chosen & (random_kind < 0.9), random_ids, ids)
    inputs = inputs.masked_fill(chosen & (random_kind < 0.8), mask_id)
    return inputs, inputs.masked_fill(~chosen, -100)


# %% mask_tokens: special tokens chosen
# caught by: test_special_tokens_are_never_chosen
# says: Special tokens are chosen too: [CLS], [SEP] and padding should stay.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = random < p
    inputs = torch.where(chosen & (random_kind < 0.9), random_ids, ids)
    return inputs.masked_fill(chosen & (random_kind < 0.8), mask_id), ids.masked_fill(~chosen, -100)


# %% mask_tokens: every id up to the largest special one
# caught by: test_special_tokens_are_never_chosen
# says: All ids from the smallest to the largest of special_ids are spared, also those between that are not special.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~((ids >= min(special_ids)) & (ids <= max(special_ids)))
    inputs = torch.where(chosen & (random_kind < 0.9), random_ids, ids)
    return inputs.masked_fill(chosen & (random_kind < 0.8), mask_id), ids.masked_fill(~chosen, -100)


# %% mask_tokens: random tokens where masks belong
# caught by: test_chosen_tokens_are_masked_replaced_or_kept
# says: Masks and random tokens have changed places: 80 % should become the mask and 10 % a random token.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    inputs = ids.masked_fill(chosen & (random_kind < 0.9), mask_id)
    return torch.where(chosen & (random_kind < 0.8), random_ids, inputs), ids.masked_fill(~chosen, -100)


# %% mask_tokens: every chosen token masked
# caught by: test_chosen_tokens_are_masked_replaced_or_kept, test_the_shares_are_80_10_10
# says: All chosen tokens become the mask: of ten, one should be a random token and one stay.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    return ids.masked_fill(chosen, mask_id), ids.masked_fill(~chosen, -100)


# %% mask_tokens: one draw for both choices
# caught by: test_chosen_tokens_are_masked_replaced_or_kept
# says: The kind is decided by random, which is below p for every chosen token: random_kind is the draw for that.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    inputs = torch.where(chosen & (random < 0.9), random_ids, ids)
    return inputs.masked_fill(chosen & (random < 0.8), mask_id), ids.masked_fill(~chosen, -100)


# %% mask_tokens: 0 for "nothing to guess"
# caught by: test_labels_are_the_chosen_tokens_and_nothing_else
# says: Where there is nothing to guess the label is 0, which is a token: it should be −100.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    inputs = torch.where(chosen & (random_kind < 0.9), random_ids, ids)
    return inputs.masked_fill(chosen & (random_kind < 0.8), mask_id), ids * chosen


# %% mask_tokens: ids changed in place
# caught by: test_the_tokens_are_left_as_they_were
# says: The caller's ids are changed: the name of an operation that works in place ends in _, and assigning to ids[…] is one.
def mask_tokens(ids, random, random_kind, random_ids, mask_id, special_ids, p=0.15):
    chosen = (random < p) & ~torch.isin(ids, torch.tensor(special_ids))
    labels = ids.masked_fill(~chosen, -100)
    replaced = chosen & (random_kind >= 0.8) & (random_kind < 0.9)
    ids[replaced] = random_ids[replaced]
    ids[chosen & (random_kind < 0.8)] = mask_id
    return ids, labels


# %% corrupt_spans: no last sentinel
# caught by: test_the_target_ends_with_the_next_sentinel, test_nothing_hidden_is_still_an_answer
# says: The target has no last sentinel: the model would never learn to say that it is done.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(joined, sentinels):
        kept += ids[position:start] + [sentinel]
        target += [sentinel] + ids[start:end]
        position = end
    return kept + ids[position:], target


# %% corrupt_spans: one sentinel for all
# caught by: test_each_span_of_the_input_is_one_sentinel, test_the_target_tells_what_each_sentinel_hid
# says: Every span gets the same sentinel, so that the decoder cannot say which one it is filling: each has its own.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for start, end in joined:
        kept += ids[position:start] + [sentinels[0]]
        target += [sentinels[0]] + ids[start:end]
        position = end
    return kept + ids[position:], target + [sentinels[0]]


# %% corrupt_spans: the last sentinel a second time
# caught by: test_the_target_ends_with_the_next_sentinel
# says: The target ends with a sentinel that was used before: it should be the next one.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(joined, sentinels):
        kept += ids[position:start] + [sentinel]
        target += [sentinel] + ids[start:end]
        position = end
    return kept + ids[position:], target + [sentinels[max(len(joined) - 1, 0)]]


# %% corrupt_spans: a sentinel for every hidden token
# caught by: test_each_span_of_the_input_is_one_sentinel
# says: Every hidden token is a sentinel of the input: a whole span should be one.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(joined, sentinels):
        kept += ids[position:start] + [sentinel] * (end - start)
        target += [sentinel] + ids[start:end]
        position = end
    return kept + ids[position:], target + [sentinels[len(joined)]]


# %% corrupt_spans: the end of a span included
# caught by: test_each_span_of_the_input_is_one_sentinel, test_the_target_tells_what_each_sentinel_hid
# says: The token at the end of a span is hidden as well: (start, end) hides ids[start:end].
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(joined, sentinels):
        kept += ids[position:start] + [sentinel]
        target += [sentinel] + ids[start : end + 1]
        position = end + 1
    return kept + ids[position:], target + [sentinels[len(joined)]]


# %% corrupt_spans: a sentinel for each of two spans that touch
# caught by: test_spans_that_touch_are_one
# says: Spans that touch get a sentinel each: they are one run of hidden tokens, and take one.
def corrupt_spans(ids, spans, sentinels):
    if len(spans) + 1 > len(sentinels):
        raise ValueError(f"{len(spans) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(spans, sentinels):
        kept += ids[position:start] + [sentinel]
        target += [sentinel] + ids[start:end]
        position = end
    return kept + ids[position:], target + [sentinels[len(spans)]]


# %% corrupt_spans: the rest of the text lost
# caught by: test_each_span_of_the_input_is_one_sentinel, test_the_text_can_be_put_together_again
# says: What comes after the last span is missing from the input.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(joined, sentinels):
        kept += ids[position:start] + [sentinel]
        target += [sentinel] + ids[start:end]
        position = end
    return kept, target + [sentinels[len(joined)]]


# %% corrupt_spans: counted down from the first sentinel
# caught by: test_each_span_of_the_input_is_one_sentinel, test_the_target_tells_what_each_sentinel_hid
# says: Sentinels are counted down from the first one: take them from the list, in its order.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(joined, range(sentinels[0], -1, -1)):
        kept += ids[position:start] + [sentinel]
        target += [sentinel] + ids[start:end]
        position = end
    return kept + ids[position:], target + [sentinels[0] - len(joined)]


# %% corrupt_spans: the sentinel after what it hid
# caught by: test_the_target_tells_what_each_sentinel_hid
# says: In the target each sentinel stands behind its tokens: it should come before them, to say what follows.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(joined, sentinels):
        kept += ids[position:start] + [sentinel]
        target += ids[start:end] + [sentinel]
        position = end
    return kept + ids[position:], target + [sentinels[len(joined)]]


# %% corrupt_spans: the whole text for a target
# caught by: test_the_target_tells_what_each_sentinel_hid
# says: The target is the whole text, as BART has it: T5's target holds only what was hidden.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    if len(joined) + 1 > len(sentinels):
        raise ValueError(f"{len(joined) + 1} sentinels needed, {len(sentinels)} given")
    kept, position = [], 0
    for (start, end), sentinel in zip(joined, sentinels):
        kept += ids[position:start] + [sentinel]
        position = end
    return kept + ids[position:], list(ids)


# %% corrupt_spans: sentinels used up without a word
# caught by: test_too_few_sentinels_are_an_error
# says: If the sentinels do not suffice, spans are dropped without a word: raise a ValueError that says so.
def corrupt_spans(ids, spans, sentinels):
    joined = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    kept, target, position = [], [], 0
    for (start, end), sentinel in zip(joined, sentinels):
        kept += ids[position:start] + [sentinel]
        target += [sentinel] + ids[start:end]
        position = end
    return kept + ids[position:], target + list(sentinels[len(joined) : len(joined) + 1])
