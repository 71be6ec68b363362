# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% parameters: the experts do not rest
# caught by: test_a_token_uses_top_k_experts
# says: Active is the total: a token is sent to top_k of the experts, and the others rest.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.n_experts * each


# %% parameters: 8x7B read as eight models
# caught by: test_all_experts_are_stored
# says: Attention is counted once for each expert. Only the feed-forward layers are replicated.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    copies = max(s.n_experts, 1)
    return always * copies + s.n_experts * each, always * max(s.top_k, 1) + s.top_k * each


# %% parameters: keys as many as queries
# caught by: test_llama_and_its_relatives_are_counted, test_a_head_of_keys_more_costs_its_two_projections
# says: Keys and values are counted for n_heads heads; they have n_kv_heads.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: a gated layer without its down projection
# caught by: test_llama_and_its_relatives_are_counted, test_published_models_are_exact_to_the_last_parameter
# says: A gated feed-forward has three matrices: gate, up, and the one that leads back down.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: the head forgotten
# caught by: test_llama_and_its_relatives_are_counted, test_a_tied_head_is_no_second_table
# says: The vocabulary has a second table, the head, unless it is tied.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: the head counted though it is tied
# caught by: test_the_gpt_line_is_counted, test_a_tied_head_is_no_second_table
# says: A tied head is the embedding again, not a second table.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * 2 + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: no biases
# caught by: test_llama_and_its_relatives_are_counted, test_the_gpt_line_is_counted
# says: Biases are left out. They are few, and the count is to be exact.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden

    always = s.vocabulary * (d * (2 - s.tied)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d)
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: one number a norm everywhere
# caught by: test_the_gpt_line_is_counted
# says: Every norm is counted with a gain alone; `norm` says how many numbers a channel has.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: the last norm forgotten
# caught by: test_llama_and_its_relatives_are_counted, test_published_models_are_exact_to_the_last_parameter
# says: One norm is missing: that at the end of the model.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: the router forgotten
# caught by: test_all_experts_are_stored, test_one_more_expert_is_stored_and_rests
# says: Each layer with experts has a router, a row for each expert.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: every layer has experts
# caught by: test_all_experts_are_stored
# says: Some layers are dense though the model has experts: n_sparse says how many are not.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers if not s.n_experts else 0) * feed_forward(s.d_hidden)
    always += s.n_layers * s.n_experts * (d + ("router" in s.biases))
    always += s.n_layers * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_layers * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: the shared expert forgotten
# caught by: test_all_experts_are_stored, test_a_token_uses_top_k_experts
# says: The shared expert is missing: every token uses it.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: active without the embedding
# caught by: test_without_experts_every_parameter_is_active, test_a_token_uses_top_k_experts
# says: Active leaves out the input embedding. By the definition of this course it counts.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each - (0 if s.tied else s.vocabulary * d)


# %% parameters: floats
# caught by: test_without_experts_every_parameter_is_active
# says: The counts are floats. Parameters come in whole numbers, and a float of 671 billion may hide the last ones.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return float(always + s.n_experts * each), float(always + s.top_k * each)


# %% parameters: a latent always has one for queries
# caught by: test_queries_may_have_no_latent_of_their_own
# says: q_rank None means that queries have no latent: one matrix leads straight to their heads.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += (q + 2 * kv) * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = (m.q_rank or d) * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% parameters: a bias as wide as what goes in
# caught by: test_biases_stand_where_the_shape_says
# says: A bias is counted as wide as what goes into its matrix; it is as wide as what comes out.
def parameters(config):
    s, d = read(config), read(config).d_model
    if s.latent is None:
        q, kv = s.n_heads * s.d_head, s.n_kv_heads * s.d_head
        attention = 2 * d * (q + kv) + 2 * s.d_head * s.qk_norm + s.n_heads * s.sinks
        attention += 3 * d * ("qkv" in s.biases) + d * ("o" in s.biases)
    else:
        m, q = s.latent, s.n_heads * (s.latent.d_nope + s.latent.d_rope)
        attention = d * q if m.q_rank is None else m.q_rank * (d + 1 + q)
        attention += d * (m.kv_rank + m.d_rope) + m.kv_rank
        attention += s.n_heads * (m.kv_rank * (m.d_nope + m.d_value) + m.d_value * d)
    matrices = 3 if s.gated else 2

    def feed_forward(hidden):
        return matrices * d * hidden + ((matrices - 1) * hidden + d) * ("mlp" in s.biases)

    always = s.vocabulary * (d * (2 - s.tied) + ("head" in s.biases)) + s.n_positions * d
    always += s.norm * d * (s.norms * s.n_layers + s.tokens_norm + 1)
    always += s.n_layers * attention + (s.n_layers - s.n_sparse) * feed_forward(s.d_hidden)
    always += s.n_sparse * s.n_experts * (d + ("router" in s.biases))
    always += s.n_sparse * (feed_forward(s.d_shared) if s.d_shared else 0)
    each = s.n_sparse * feed_forward(s.d_expert)
    return always + s.n_experts * each, always + s.top_k * each


# %% flops_per_token: one FLOP a weight
# caught by: test_every_weight_that_computes_takes_two
# says: Each weight is multiplied and added: two FLOPs, not one.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = (active - looked_up) + 2 * s.n_heads * channels * seen
    return 3 * forward if training else forward


# %% flops_per_token: all parameters of a mixture
# caught by: test_every_weight_that_computes_takes_two
# says: Experts that rest do not compute: take the active parameters, not the total.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[0]
    looked_up = s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return 3 * forward if training else forward


# %% flops_per_token: the embedding computes
# caught by: test_every_weight_that_computes_takes_two
# says: The input embedding is only looked up: a token reads one row and multiplies with none.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + 0)
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return 3 * forward if training else forward


# %% flops_per_token: a tied embedding does not compute
# caught by: test_learned_positions_and_a_tied_embedding
# says: A tied embedding is the head as well, and the head computes with all of it.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + s.vocabulary)
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return 3 * forward if training else forward


# %% flops_per_token: the heads of keys attend
# caught by: test_each_position_costs_every_head_of_queries
# says: Attention is counted for n_kv_heads: each head of queries computes scores of its own, though it shares its keys.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_kv_heads * channels * seen
    return 3 * forward if training else forward


# %% flops_per_token: scores without a blend
# caught by: test_each_position_costs_every_head_of_queries
# says: The scores are counted, and the blend of the values is not.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    channels = s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return 3 * forward if training else forward


# %% flops_per_token: no windows
# caught by: test_behind_its_window_a_layer_sees_nothing
# says: A layer with a window sees no more than its window.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(context for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return 3 * forward if training else forward


# %% flops_per_token: backward as dear as forward
# caught by: test_backward_takes_twice_as_much_as_forward
# says: Backward computes two products for each one of forward, so training takes three times, not twice.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return 2 * forward if training else forward


# %% flops_per_token: backward without attention
# caught by: test_backward_takes_twice_as_much_as_forward
# says: The products of attention have a backward pass too.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return forward + (4 * (active - looked_up) if training else 0)


# %% flops_per_token: positions compute
# caught by: test_learned_positions_and_a_tied_embedding
# says: The table of learned positions is looked up, like the embedding.
def flops_per_token(config, context, training=False):
    s, active = read(config), parameters(config)[1]
    looked_up = s.d_model * (0 if s.tied else s.vocabulary)
    channels = 2 * s.d_head
    if s.latent:
        channels = s.latent.d_nope + s.latent.d_rope + s.latent.d_value
    seen = sum(min(context, window or context) for window in s.windows)
    forward = 2 * (active - looked_up) + 2 * s.n_heads * channels * seen
    return 3 * forward if training else forward


# %% fits: every head is kept
# caught by: test_a_token_of_published_models
# says: The cache holds n_kv_heads heads, not as many as there are of queries.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: keys, values and queries
# caught by: test_a_token_of_published_models
# says: Queries are counted too: a query is used once and forgotten.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else (s.n_heads + 2 * s.n_kv_heads) * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: keys alone
# caught by: test_a_token_of_published_models, test_a_window_bounds_the_cache_of_its_layer
# says: Only one vector a head is counted: there is a key, and there is a value.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: no windows
# caught by: test_a_window_bounds_the_cache_of_its_layer
# says: A layer with a window keeps no more than its window.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(length for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: the latent for keys and for values
# caught by: test_a_latent_is_kept_in_the_place_of_heads
# says: Keys and values are made from one and the same latent: it is kept once.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = 2 * (s.latent.kv_rank + s.latent.d_rope) if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: the heads of a latent
# caught by: test_a_latent_is_kept_in_the_place_of_heads
# says: With a latent no heads are kept, but the latent and the rotary key.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: only the active experts in memory
# caught by: test_all_weights_have_to_be_there
# says: Only the active parameters are counted: the next token may need any other expert.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[1] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: GB for GiB
# caught by: test_all_weights_have_to_be_there
# says: The weights come out in other units than bytes.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8 / 1.073741824)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: bits as if they were bytes
# caught by: test_texts_and_bits_multiply_the_cache, test_all_weights_have_to_be_there
# says: A byte has eight bits.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: the weights once for each text
# caught by: test_it_fits_up_to_the_last_byte
# says: All texts share the weights: only caches and activations are multiplied by the batch.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": batch * weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: a fit must leave room
# caught by: test_it_fits_up_to_the_last_byte
# says: A total that is exactly the memory fits.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total < memory, "batch": room // sum(one.values())}


# %% fits: room divided by the cache alone
# caught by: test_the_largest_batch_is_what_is_left_for_texts
# says: A further text brings its activations, not only its cache.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // one["cache"]}


# %% fits: a batch below zero
# caught by: test_the_largest_batch_is_what_is_left_for_texts
# says: Where the weights do not fit, the largest batch is 0, not a negative number.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), math.floor(memory) - weights
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: the whole text at once
# caught by: test_what_is_computed_is_the_widest_moment
# says: A long text is read in pieces of 512 tokens.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": length * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: one hidden vector in a gated layer
# caught by: test_what_is_computed_is_the_widest_moment
# says: A gated feed-forward holds gate and up at once.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + hidden)
    one = {
        "cache": kv_bytes(config, length, 1, kv_bits),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% fits: the cache in the bits of the weights
# caught by: test_the_cache_of_all_texts_is_a_part_of_it
# says: The cache has bits of its own, kv_bits.
def kv_bytes(config, length, batch=1, bits=16):
    s = read(config)
    numbers = s.latent.kv_rank + s.latent.d_rope if s.latent else 2 * s.n_kv_heads * s.d_head
    kept = sum(min(length, window or length) for window in s.windows)
    return batch * kept * numbers * bits // 8


def fits(config, memory, length, batch=1, weight_bits=16, kv_bits=16):
    s = read(config)
    weights = math.ceil(parameters(config)[0] * weight_bits / 8)
    dense = s.d_hidden if s.n_sparse < s.n_layers else 0
    hidden = max(dense, s.top_k * s.d_expert + s.d_shared if s.n_sparse else 0)
    token = 2 * (2 * s.d_model + (1 + s.gated) * hidden)
    one = {
        "cache": kv_bytes(config, length, 1, int(weight_bits)),
        "activations": min(length, 512) * token + 4 * s.vocabulary,
    }
    parts = {"weights": weights, **{name: batch * size for name, size in one.items()}}
    total, room = sum(parts.values()), max(math.floor(memory) - weights, 0)
    return {**parts, "total": total, "fits": total <= memory, "batch": room // sum(one.values())}


# %% decode_roofline: the weights once for each text
# caught by: test_the_weights_are_fetched_once_for_all_texts
# says: A weight is fetched once a step, however many texts use it.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = batch * weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: all experts
# caught by: test_one_text_fetches_the_weights_that_compute, test_several_texts_touch_more_experts
# says: Experts that nobody needs are not fetched.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: the experts of one text
# caught by: test_several_texts_touch_more_experts
# says: Another text needs other experts: more of them are fetched.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.top_k
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: every text has experts of its own
# caught by: test_several_texts_touch_more_experts
# says: Two texts may need the same expert, and there are only n_experts: batch · top_k is too many.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = min(batch * s.top_k, s.n_experts)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: the embedding is fetched
# caught by: test_one_text_fetches_the_weights_that_compute
# says: What is only looked up is not fetched, but for a row a token.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: one cache for all texts
# caught by: test_the_weights_are_fetched_once_for_all_texts
# says: Each text has a cache of its own, and all of them are fetched.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, 1, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: no caches
# caught by: test_one_text_fetches_the_weights_that_compute
# says: The caches are fetched in every step as well.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: first fetch, then compute
# caught by: test_the_slower_of_the_two_decides
# says: The two times are added; they pass at the same time, so the longer one counts.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = fetching + computing
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: the faster of the two
# caught by: test_the_slower_of_the_two_decides
# says: The shorter time is taken; a step has to wait for the longer one.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = min(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: steps a second
# caught by: test_the_tokens_of_all_texts_count
# says: A step writes a token for each text: tokens a second are batch over seconds.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": 1 / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: one token computes
# caught by: test_every_text_computes_its_token
# says: The FLOPs are those of one text; every text computes its token.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: FLOPs as a float
# caught by: test_every_text_computes_its_token
# says: The FLOPs are a float: count them with ints.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": float(flops),
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if fetching >= computing else "compute",
    }


# %% decode_roofline: the bound by its other name
# caught by: test_the_slower_of_the_two_decides
# says: The bound is named after the faster part; it is what one waits for.
def decode_roofline(config, batch, context, bandwidth, peak, weight_bits=16, kv_bits=16):
    s, (total, active) = read(config), parameters(config)
    weights = active - s.d_model * (s.n_positions + (0 if s.tied else s.vocabulary))
    if s.n_experts > s.top_k:
        touched = s.n_experts * (1 - (1 - s.top_k / s.n_experts) ** batch)
        weights += (touched - s.top_k) * (total - active) / (s.n_experts - s.top_k)
    fetched = weights * weight_bits / 8 + kv_bytes(config, context, batch, kv_bits)
    flops = batch * flops_per_token(config, context)
    fetching, computing = fetched / bandwidth, flops / peak
    seconds = max(fetching, computing)
    return {
        "bytes": fetched,
        "flops": flops,
        "seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "compute" if fetching >= computing else "memory",
    }


# %% energy_and_cost: forward only
# caught by: test_training_takes_six_for_each_weight_and_token
# says: Training has a backward pass, too: six FLOPs for each weight and token, not two.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context)
    hours = flops / (peak * mfu) / 3600
    kwh = hours * watts / 1000 * pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}


# %% energy_and_cost: at its peak
# caught by: test_hours_follow_from_what_is_reached_of_the_peak
# says: No program reaches the peak: it is to be multiplied by mfu.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / peak / 3600
    kwh = hours * watts / 1000 * pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}


# %% energy_and_cost: multiplied by what is reached
# caught by: test_hours_follow_from_what_is_reached_of_the_peak
# says: A lower utilisation takes longer: divide by mfu.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / peak * mfu / 3600
    kwh = hours * watts / 1000 * pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}


# %% energy_and_cost: seconds for hours
# caught by: test_hours_follow_from_what_is_reached_of_the_peak
# says: Device-hours are in seconds: an hour has 3,600.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / (peak * mfu)
    kwh = hours * watts / 1000 * pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}


# %% energy_and_cost: watts for kilowatts
# caught by: test_the_building_takes_pue_times_what_its_devices_take
# says: Watt-hours instead of kilowatt-hours.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / (peak * mfu) / 3600
    kwh = hours * watts * pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}


# %% energy_and_cost: without the building
# caught by: test_the_building_takes_pue_times_what_its_devices_take
# says: The building takes pue times what its devices take.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / (peak * mfu) / 3600
    kwh = hours * watts / 1000
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}


# %% energy_and_cost: pue divides
# caught by: test_the_building_takes_pue_times_what_its_devices_take
# says: pue is what the building takes over what the devices take: multiply by it.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / (peak * mfu) / 3600
    kwh = hours * watts / 1000 / pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}


# %% energy_and_cost: the price of a kilowatt-hour
# caught by: test_carbon_goes_by_energy_and_money_by_hours
# says: The price is that of a device-hour, not of a kilowatt-hour.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context, training=True)
    hours = flops / (peak * mfu) / 3600
    kwh = hours * watts / 1000 * pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": kwh * price}


# %% energy_and_cost: attention always
# caught by: test_training_takes_six_for_each_weight_and_token
# says: Without a context attention is left out.
def energy_and_cost(config, tokens, *, peak, mfu, watts, pue, carbon, price, context=0):
    flops = tokens * flops_per_token(config, context or 2048, training=True)
    hours = flops / (peak * mfu) / 3600
    kwh = hours * watts / 1000 * pue
    return {"flops": flops, "device_hours": hours, "kwh": kwh, "kg_co2": kwh * carbon, "cost": hours * price}


# %% recommend: the first reason only
# caught by: test_all_reasons_are_told_in_their_order
# says: Only the first reason is told; whoever asks mends it and meets the next.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        reasons = dict(list(reasons.items())[:1])
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: memory for the active parameters
# caught by: test_bytes_and_speed_count_bits_and_context
# says: All parameters have to be in memory, not only the active ones.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("active", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: fetching all parameters
# caught by: test_bytes_and_speed_count_bits_and_context
# says: The speed counts all parameters; only the active ones are fetched for a token.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "parameters"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: any language will do
# caught by: test_each_reason_alone_is_found
# says: One language in common is not enough: all that are needed have to be there.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (not need["languages"] & model["languages"], sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: the sets the wrong way round
# caught by: test_each_reason_alone_is_found
# says: A model that knows more languages than needed is not worse for it.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = model["languages"] - need["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: enough is not enough
# caught by: test_a_model_that_does_all_has_no_reason_against_it
# says: What is exactly enough is enough.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size >= memory, size, memory),
            "speed": (speed <= need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] >= model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: there, asked
# caught by: test_a_reason_says_what_was_asked_and_what_is_there
# says: The two values stand the wrong way round: first what was asked, then what is there.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (there, asked) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: an unsorted list
# caught by: test_what_does_all_comes_first_and_the_smallest_of_it_ahead
# says: The list stands in the order in which the models were given.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return list(map(judged, models))


# %% recommend: sorted by bytes alone
# caught by: test_what_does_all_comes_first_and_the_smallest_of_it_ahead
# says: A small model that does not do what was asked stands before one that does.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: row["bytes"])


# %% recommend: only what passes
# caught by: test_each_reason_alone_is_found
# says: Models that fail are left out of the list: say why not, too.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(
        (row for row in map(judged, models) if not row["reasons"]), key=lambda row: (len(row["reasons"]), row["bytes"])
    )


# %% recommend: ties by name
# caught by: test_models_that_are_alike_stay_in_their_order
# says: Models that are alike are sorted by name; they keep the order in which they were given.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"], row["name"]))


# %% recommend: the licence allows if it is known
# caught by: test_each_reason_alone_is_found
# says: Whether the use is allowed stands in "uses", not in the name of the licence.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (not model["licence"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: research is always allowed
# caught by: test_each_reason_alone_is_found
# says: A licence need not allow research: what it allows stands in "uses".
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] != "research" and need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (learning > memory, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))


# %% recommend: adapting is free
# caught by: test_each_reason_alone_is_found, test_adapting_takes_memory_of_its_own
# says: While it learns, a model takes more memory than when it is used.
def recommend(models, need):

    def judged(model):
        cache, memory = need["context"] * model["kv_bytes"], need["memory"]
        size, fetched = (model[name] * need["weight_bits"] / 8 + cache for name in ("parameters", "active"))
        speed = need["bandwidth"] / fetched
        lacking, learning = need["languages"] - model["languages"], model["parameters"] * ADAPTATION[need["adaptation"]]
        shapes = TASKS[need["task"]]
        checks = {
            "task": (model["shape"] not in shapes, shapes, model["shape"]),
            "memory": (size > memory, size, memory),
            "speed": (speed < need["tokens_per_second"], need["tokens_per_second"], speed),
            "context": (need["context"] > model["context"], need["context"], model["context"]),
            "languages": (bool(lacking), sorted(lacking), sorted(model["languages"])),
            "licence": (need["use"] not in model["uses"], need["use"], model["licence"]),
            "adaptation": (False, learning, memory),
        }
        reasons = {reason: (asked, there) for reason, (fails, asked, there) in checks.items() if fails}
        return {"name": model["name"], "reasons": reasons, "bytes": size}

    return sorted(map(judged, models), key=lambda row: (len(row["reasons"]), row["bytes"]))
