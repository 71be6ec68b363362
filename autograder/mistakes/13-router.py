# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% route: softmax over the chosen logits, always
# caught by: test_weights_as_they_are_are_probabilities_among_all
# says: The softmax sees only the chosen logits, which renormalises whatever you are told; with renormalise=False it must run over all experts.
def route(logits, top_k, renormalise=True):
    top, experts = logits.topk(top_k, dim=-1)
    return top.softmax(-1, dtype=torch.float32).to(logits.dtype), experts


# %% route: never renormalised
# caught by: test_renormalised_weights_share_one_among_the_chosen, test_weights_are_renormalised_unless_told_otherwise
# says: These are the probabilities as they are: with renormalise=True they should be divided by their sum over the chosen experts.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k)
    return weights.to(logits.dtype), experts


# %% route: the two conventions swapped
# caught by: test_weights_are_renormalised_unless_told_otherwise, test_weights_as_they_are_are_probabilities_among_all
# says: The two conventions are swapped: renormalise=True is the one whose weights sum to 1.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k)
    if not renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts


# %% route: a second softmax over the chosen probabilities
# caught by: test_renormalised_weights_share_one_among_the_chosen
# says: A softmax of the chosen probabilities makes them nearly equal: renormalising is dividing by their sum.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k)
    if renormalise:
        weights = weights.softmax(-1)
    return weights.to(logits.dtype), experts


# %% route: the smallest instead of the largest
# caught by: test_a_token_uses_the_experts_with_the_largest_logits
# says: These are the experts with the smallest logits.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k, largest=False)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts


# %% route: ordered by the experts' numbers
# caught by: test_a_token_uses_the_experts_with_the_largest_logits
# says: The right experts, but in the order of their numbers: the one with the largest weight should stand first.
def route(logits, top_k, renormalise=True):
    probabilities = logits.softmax(-1, dtype=torch.float32)
    experts = probabilities.topk(top_k).indices.sort(-1).values
    weights = probabilities.gather(-1, experts)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts


# %% route: the softmax runs over the tokens
# caught by: test_each_token_is_routed_by_itself, test_renormalised_weights_share_one_among_the_chosen
# says: The softmax runs over the tokens instead of the experts, so that a token's weights depend on its neighbours.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(0, dtype=torch.float32).topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts


# %% route: the sum runs over all the tokens
# caught by: test_renormalised_weights_share_one_among_the_chosen
# says: The weights are divided by the sum over all tokens: each token's own should sum to 1.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k)
    if renormalise:
        weights = weights / weights.sum()
    return weights.to(logits.dtype), experts


# %% route: a sigmoid instead of the softmax
# caught by: test_weights_as_they_are_are_probabilities_among_all, test_renormalised_weights_share_one_among_the_chosen
# says: These are sigmoids of the logits, as DeepSeek-V3 has them; here the probabilities come from a softmax over all experts.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.float().sigmoid().topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts


# %% route: logits divided by their sum
# caught by: test_renormalised_weights_share_one_among_the_chosen
# says: The logits themselves are used as weights; they need a softmax first.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts


# %% route: the softmax in bfloat16
# caught by: test_the_softmax_runs_in_float32
# says: The softmax is computed in the dtype of the logits: in bfloat16 that costs digits. Compute it in float32 and cast the weights back.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1).topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts


# %% route: the weights stay in float32
# caught by: test_the_results_have_the_dtypes_that_are_promised
# says: The weights should come back in the dtype of the logits.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights, experts


# %% route: the weights are detached
# caught by: test_the_router_learns_through_renormalised_weights, test_the_router_learns_through_weights_as_they_are
# says: The values are right, but no gradient reaches the logits, so the router would never learn.
def route(logits, top_k, renormalise=True):
    with torch.no_grad():
        weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k)
        if renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts


# %% route: experts and weights in the other order
# caught by: test_a_token_uses_the_experts_with_the_largest_logits
# says: The two results are in the other order: weights come first, then experts.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return experts, weights.to(logits.dtype)


# %% route: overflowing exponentials
# caught by: test_large_logits_give_finite_weights
# says: exp of a large logit is infinite: subtract the largest one first, or use softmax.
def route(logits, top_k, renormalise=True):
    exp = logits.float().exp()
    weights, experts = (exp / exp.sum(-1, keepdim=True)).topk(top_k)
    if renormalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(logits.dtype), experts


# %% route: divided by the largest weight
# caught by: test_renormalised_weights_share_one_among_the_chosen
# says: The weights are divided by the largest of them: they should be divided by their sum.
def route(logits, top_k, renormalise=True):
    weights, experts = logits.softmax(-1, dtype=torch.float32).topk(top_k)
    if renormalise:
        weights = weights / weights[:, :1]
    return weights.to(logits.dtype), experts


# %% MoELayer: the second expert overwrites the first
# caught by: test_the_layer_matches_mixtrals_block
# says: A later expert overwrites what an earlier one wrote for the same token: add to it.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            gate, up = F.linear(flat[token], self.gate_up[e]).chunk(2, dim=-1)
            out[token] = F.linear(F.silu(gate) * up, self.down[e]) * weights[token, slot].unsqueeze(-1)
        return out.view_as(x)


# %% MoELayer: the weights are left out
# caught by: test_the_layer_matches_mixtrals_block
# says: The experts' results are added without their weights.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            gate, up = F.linear(flat[token], self.gate_up[e]).chunk(2, dim=-1)
            out = out.index_add(0, token, F.linear(F.silu(gate) * up, self.down[e]))
        return out.view_as(x)


# %% MoELayer: the weight is applied to the input
# caught by: test_the_layer_matches_mixtrals_block
# says: The weight multiplies what goes into the expert; it should multiply what comes out, which is not the same: an expert is not linear.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            mine = flat[token] * weights[token, slot].unsqueeze(-1)
            gate, up = F.linear(mine, self.gate_up[e]).chunk(2, dim=-1)
            out = out.index_add(0, token, F.linear(F.silu(gate) * up, self.down[e]))
        return out.view_as(x)


# %% MoELayer: gate and up swapped
# caught by: test_the_layer_matches_mixtrals_block
# says: Gate and up are swapped: the first half of gate_up is the gate, and silu belongs to it.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            up, gate = F.linear(flat[token], self.gate_up[e]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self.down[e])
            out = out.index_add(0, token, y * weights[token, slot].unsqueeze(-1))
        return out.view_as(x)


# %% MoELayer: gate and up interleaved
# caught by: test_the_layer_matches_mixtrals_block
# says: Every other row is taken as the gate, as in gpt-oss; here the first half of gate_up is the gate.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            both = F.linear(flat[token], self.gate_up[e])
            y = F.linear(F.silu(both[:, ::2]) * both[:, 1::2], self.down[e])
            out = out.index_add(0, token, y * weights[token, slot].unsqueeze(-1))
        return out.view_as(x)


# %% MoELayer: renormalise is forgotten
# caught by: test_the_layer_keeps_weights_as_they_are_if_told_so
# says: renormalise never reaches route, so the weights are always renormalised.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            gate, up = F.linear(flat[token], self.gate_up[e]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self.down[e])
            out = out.index_add(0, token, y * weights[token, slot].unsqueeze(-1))
        return out.view_as(x)


# %% MoELayer: all experts run on all tokens
# caught by: test_an_expert_runs_for_its_own_tokens_only
# says: Every expert computes every token, and most results are multiplied by 0: right, and as dear as a dense layer with all experts.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            share = (weights * (experts == e)).sum(-1, keepdim=True)
            gate, up = F.linear(flat, self.gate_up[e]).chunk(2, dim=-1)
            out = out + share * F.linear(F.silu(gate) * up, self.down[e])
        return out.view_as(x)


# %% MoELayer: all experts run on all tokens, and where() hides it
# caught by: test_an_expert_runs_for_its_own_tokens_only
# says: Every expert computes every token, and what a token did not choose is thrown away: as dear as a dense layer with all experts.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            gate, up = (flat @ self.gate_up[e].T).chunk(2, -1)
            y = (F.silu(gate) * up) @ self.down[e].T
            share = (weights * (experts == e)).sum(-1, keepdim=True)
            out = out + torch.where((experts == e).any(-1, keepdim=True), share * y, 0)
        return out.view_as(x)


# %% MoELayer: every expert counts
# caught by: test_the_layer_matches_mixtrals_block, test_an_expert_runs_for_its_own_tokens_only
# says: All experts are mixed by their probabilities; only the top_k of a token should be.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        shares = self.router(x).softmax(-1)
        out = torch.zeros_like(x)
        for e in range(len(self.down)):
            gate, up = F.linear(x, self.gate_up[e]).chunk(2, dim=-1)
            out = out + shares[..., e : e + 1] * F.linear(F.silu(gate) * up, self.down[e])
        return out


# %% MoELayer: only the best expert is used
# caught by: test_the_layer_matches_mixtrals_block
# says: Only the first of a token's experts is used.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token = (experts[:, 0] == e).nonzero().squeeze(-1)
            gate, up = F.linear(flat[token], self.gate_up[e]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self.down[e])
            out = out.index_add(0, token, y * weights[token, :1])
        return out.view_as(x)


# %% MoELayer: the router gets no gradient
# caught by: test_gradients_reach_x_the_experts_and_the_router
# says: The weights are detached, so the router never learns.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        with torch.no_grad():
            weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            gate, up = F.linear(flat[token], self.gate_up[e]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self.down[e])
            out = out.index_add(0, token, y * weights[token, slot].unsqueeze(-1))
        return out.view_as(x)


# %% MoELayer: one choice for a whole text
# caught by: test_the_layer_matches_mixtrals_block, test_tokens_do_not_meet
# says: A text is routed as a whole, by the mean of its tokens; each token should be routed by itself.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        weights, experts = route(self.router(x.mean(1)), self.top_k, self.renormalise)
        out = torch.zeros_like(x)
        for e in range(len(self.down)):
            text, slot = (experts == e).nonzero(as_tuple=True)
            gate, up = F.linear(x[text], self.gate_up[e]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self.down[e])
            out = out.index_add(0, text, y * weights[text, slot][:, None, None])
        return out


# %% MoELayer: a router with a bias
# caught by: test_the_layer_has_three_weights_and_nothing_else
# says: The router has a bias, so the state dict has a fourth entry: bias=False.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = torch.zeros_like(flat)
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            gate, up = F.linear(flat[token], self.gate_up[e]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self.down[e])
            out = out.index_add(0, token, y * weights[token, slot].unsqueeze(-1))
        return out.view_as(x)


# %% MoELayer: x is added
# caught by: test_the_layer_matches_mixtrals_block
# says: x is added to the result: the residual stands outside of this layer.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(torch.randn(n_experts, 2 * d_hidden, d_model) * 0.02)
        self.down = nn.Parameter(torch.randn(n_experts, d_model, d_hidden) * 0.02)

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weights, experts = route(self.router(flat), self.top_k, self.renormalise)
        out = flat.clone()
        for e in range(len(self.down)):
            token, slot = (experts == e).nonzero(as_tuple=True)
            gate, up = F.linear(flat[token], self.gate_up[e]).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, self.down[e])
            out = out.index_add(0, token, y * weights[token, slot].unsqueeze(-1))
        return out.view_as(x)


# %% grouped_experts: the way back is forgotten
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts
# says: The results are added up in the sorted order: row r no longer belongs to token r, and each result has to go back to its own token.
def grouped_experts(x, weights, experts, gate_up, down):
    k = experts.shape[1]
    order = experts.flatten().argsort()
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    gate, up = F.grouped_mm(x[order // k], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends) * weights.flatten()[order, None]
    return y.view(len(x), k, -1).sum(1)


# %% grouped_experts: the sorted results are weighed as if they were in the tokens' order
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts
# says: The results stand in the sorted order when they are weighed and added up: row r no longer belongs to token r, and each result has to go back to its own token.
def grouped_experts(x, weights, experts, gate_up, down):
    k = experts.shape[1]
    order = experts.flatten().argsort(stable=True)
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    gate, up = F.grouped_mm(x[order // k], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends)
    return (y.view(len(x), k, -1) * weights[..., None]).sum(1)


# %% grouped_experts: a token's number is the remainder
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts
# says: Choice i belongs to token i // top_k; the remainder i % tokens is that of repeated, not of interleaved tokens.
def grouped_experts(x, weights, experts, gate_up, down):
    order = experts.flatten().argsort()
    token = order % len(x)
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    gate, up = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, token, y)


# %% grouped_experts: the weights are not sorted
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts
# says: The rows are sorted and the weights are not, so that each result gets another one's weight.
def grouped_experts(x, weights, experts, gate_up, down):
    order = experts.flatten().argsort()
    token = order // experts.shape[1]
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    gate, up = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends) * weights.flatten()[:, None]
    return torch.zeros_like(x).index_add(0, token, y)


# %% grouped_experts: the rows are not sorted
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts
# says: The blocks are cut from rows that were never sorted, so an expert gets tokens that chose another one.
def grouped_experts(x, weights, experts, gate_up, down):
    token = torch.arange(len(x)).repeat_interleave(experts.shape[1])
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    gate, up = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends) * weights.flatten()[:, None]
    return torch.zeros_like(x).index_add(0, token, y)


# %% grouped_experts: idle experts are skipped in the count
# caught by: test_experts_without_a_token_work
# says: An expert without a token is left out of the list of blocks, so that the experts after it get the wrong tokens, or there are too few blocks.
def grouped_experts(x, weights, experts, gate_up, down):
    order = experts.flatten().argsort()
    token = order // experts.shape[1]
    _, sizes = experts.flatten().sort().values.unique_consecutive(return_counts=True)
    out = torch.zeros_like(x)
    for e, (to, slot) in enumerate(zip(token.split(sizes.tolist()), order.split(sizes.tolist()))):
        gate, up = (x[to] @ gate_up[e].T).chunk(2, -1)
        out = out.index_add(0, to, (F.silu(gate) * up) @ down[e].T * weights.flatten()[slot, None])
    return out


# %% grouped_experts: every expert gets as many rows
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts, test_experts_without_a_token_work
# says: The sorted rows are cut into blocks of equal size, as if every expert were chosen equally often: count first.
def grouped_experts(x, weights, experts, gate_up, down):
    order = experts.flatten().argsort()
    token = order // experts.shape[1]
    size = -(-len(order) // len(down))
    out = torch.zeros_like(x)
    for e, (to, slot) in enumerate(zip(token.split(size), order.split(size))):
        gate, up = (x[to] @ gate_up[e].T).chunk(2, -1)
        out = out.index_add(0, to, (F.silu(gate) * up) @ down[e].T * weights.flatten()[slot, None])
    return out


# %% grouped_experts: results overwrite each other
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts
# says: Of a token's results only one is kept: out[token] = y overwrites, index_add adds.
def grouped_experts(x, weights, experts, gate_up, down):
    order = experts.flatten().argsort()
    token = order // experts.shape[1]
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    gate, up = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, -1)
    out = torch.zeros_like(x)
    out[token] = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends) * weights.flatten()[order, None]
    return out


# %% grouped_experts: renormalised once more
# caught by: test_weights_count_as_they_are
# says: The weights are divided by their sum here; they should be used as they are given.
def grouped_experts(x, weights, experts, gate_up, down):
    weights = weights / weights.sum(-1, keepdim=True)
    order = experts.flatten().argsort()
    token = order // experts.shape[1]
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    gate, up = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, token, y)


# %% grouped_experts: gate and up swapped
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts
# says: Gate and up are swapped: the first half of gate_up is the gate, and silu belongs to it.
def grouped_experts(x, weights, experts, gate_up, down):
    order = experts.flatten().argsort()
    token = order // experts.shape[1]
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    up, gate = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends) * weights.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, token, y)


# %% grouped_experts: all experts run on all tokens
# caught by: test_sorted_experts_run_for_their_own_tokens_only
# says: Every expert computes every token, and most results are thrown away: an expert should compute its own tokens only.
def grouped_experts(x, weights, experts, gate_up, down):
    gate, up = torch.einsum("td,ehd->teh", x, gate_up).chunk(2, -1)
    each = torch.einsum("teh,edh->ted", F.silu(gate) * up, down)
    share = torch.zeros(len(x), len(down), dtype=x.dtype).scatter(1, experts, weights)
    return torch.einsum("te,ted->td", share, each)


# %% grouped_experts: all experts run on all tokens, and where() hides it
# caught by: test_sorted_experts_run_for_their_own_tokens_only
# says: Every expert computes every token, and what a token did not choose is thrown away: an expert should compute its own tokens only.
def grouped_experts(x, weights, experts, gate_up, down):
    out = torch.zeros_like(x)
    for e in range(len(down)):
        gate, up = (x @ gate_up[e].T).chunk(2, -1)
        y = (F.silu(gate) * up) @ down[e].T
        share = (weights * (experts == e)).sum(-1, keepdim=True)
        out = out + torch.where((experts == e).any(-1, keepdim=True), share * y, 0)
    return out


# %% grouped_experts: choices of weight zero are left out
# caught by: test_gradients_reach_all_four
# says: A choice whose weight is 0 is left out. It adds nothing, but the weight has a gradient, which may make it another number.
def grouped_experts(x, weights, experts, gate_up, down):
    out = torch.zeros_like(x)
    for e in range(len(down)):
        token, place = torch.where((experts == e) & (weights != 0))
        gate, up = (x[token] @ gate_up[e].T).chunk(2, -1)
        out = out.index_add(0, token, weights[token, place, None] * ((F.silu(gate) * up) @ down[e].T))
    return out


# %% grouped_experts: the weights are detached
# caught by: test_gradients_reach_all_four
# says: The values are right, but no gradient reaches the weights, so the router would never learn.
def grouped_experts(x, weights, experts, gate_up, down):
    order = experts.flatten().argsort()
    token = order // experts.shape[1]
    ends = experts.flatten().bincount(minlength=len(down)).cumsum(0).int()
    gate, up = F.grouped_mm(x[token], gate_up.mT, offs=ends).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, down.mT, offs=ends) * weights.detach().flatten()[order, None]
    return torch.zeros_like(x).index_add(0, token, y)


# %% count_parameters: the router counts by share too
# caught by: test_mixtral_is_counted_to_the_last_parameter
# says: Parts that every token uses are counted by share: only the experts are.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        total += size
        if "experts" in name.split(".") or "gate" in name or "router" in name:
            active += size * top_k // shape[0]
        elif embedding or "embed_tokens" not in name.split("."):
            active += size
    return total, active


# %% count_parameters: "experts" anywhere in the name
# caught by: test_names_that_look_alike_are_told_apart
# says: A name that only contains the letters "experts", such as shared_experts, is taken for a routed expert.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        total += size
        if "experts" in name:
            active += size * top_k // shape[0]
        elif embedding or "embed_tokens" not in name.split("."):
            active += size
    return total, active


# %% count_parameters: "experts" only where transformers has it
# caught by: test_names_that_look_alike_are_told_apart
# says: The part experts is looked for in one place of the name; it may stand anywhere between the dots.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        total += math.prod(shape)
        if "experts" in parts[-2:]:
            active += top_k * math.prod(shape[1:])
        elif embedding or "embed_tokens" not in parts:
            active += math.prod(shape)
    return total, active


# %% count_parameters: "embed_tokens" only before the last dot
# caught by: test_names_that_look_alike_are_told_apart
# says: The part embed_tokens is looked for in one place of the name; it may stand anywhere between the dots, the last one too.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        total += math.prod(shape)
        if "experts" in parts:
            active += top_k * math.prod(shape[1:])
        elif embedding or "embed_tokens" not in parts[:-1]:
            active += math.prod(shape)
    return total, active


# %% count_parameters: the embedding leaves the total too
# caught by: test_without_the_embedding_it_is_not_active_but_stored
# says: embedding=False takes the table out of the total as well; it is stored all the same.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        if not embedding and "embed_tokens" in parts:
            continue
        total += math.prod(shape)
        active += top_k * math.prod(shape[1:]) if "experts" in parts else math.prod(shape)
    return total, active


# %% count_parameters: embedding is ignored
# caught by: test_without_the_embedding_it_is_not_active_but_stored
# says: embedding=False makes no difference.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        total += math.prod(shape)
        active += top_k * math.prod(shape[1:]) if "experts" in name.split(".") else math.prod(shape)
    return total, active


# %% count_parameters: the output matrix is left out as well
# caught by: test_without_the_embedding_it_is_not_active_but_stored
# says: The output matrix is left out with the input embedding; every token is multiplied with all of it.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        total += math.prod(shape)
        if "experts" in parts:
            active += top_k * math.prod(shape[1:])
        elif embedding or not {"embed_tokens", "lm_head"} & set(parts):
            active += math.prod(shape)
    return total, active


# %% count_parameters: active is one expert
# caught by: test_the_router_counts_in_full_and_the_experts_by_share
# says: One expert is counted as active, whatever top_k is.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        parts = name.split(".")
        total += math.prod(shape)
        if "experts" in parts:
            active += math.prod(shape[1:])
        elif embedding or "embed_tokens" not in parts:
            active += math.prod(shape)
    return total, active


# %% count_parameters: shares as floats
# caught by: test_counts_are_exact_at_any_size
# says: The share is computed as a float, which has 16 digits: the last ones of a large count are lost.
def count_parameters(shapes, top_k, embedding=True):
    total = active = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        total += size
        if "experts" in name.split("."):
            active += int(size * (top_k / shape[0]))
        elif embedding or "embed_tokens" not in name.split("."):
            active += size
    return total, active


# %% count_parameters: one number of experts for all layers
# caught by: test_layers_may_differ_in_their_experts
# says: The number of experts of the first layer is used for all of them.
def count_parameters(shapes, top_k, embedding=True):
    n_experts = next((shape[0] for name, shape in shapes.items() if "experts" in name.split(".")), 1)
    total = active = 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        total += size
        if "experts" in name.split("."):
            active += size * top_k // n_experts
        elif embedding or "embed_tokens" not in name.split("."):
            active += size
    return total, active


# %% grouped_experts: the weight multiplies what goes in
# caught by: test_each_token_gets_the_weighted_sum_of_its_experts, test_weights_count_as_they_are
# says: The weight multiplies what goes into the expert, and belongs to what comes out: an expert of half a token is not half of its answer.
def grouped_experts(x, weights, experts, gate_up, down):
    order = experts.flatten().argsort()
    sizes = experts.flatten().bincount(minlength=len(down)).tolist()
    token = order // experts.shape[1]
    rows = x.index_select(0, token) * weights.flatten().index_select(0, order)[:, None]
    out = torch.zeros_like(x)
    for to, mine, u, d in zip(token.split(sizes), rows.split(sizes), gate_up.unbind(), down.unbind()):
        gate, up = (mine @ u.T).chunk(2, -1)
        out.index_add_(0, to, (F.silu(gate) * up) @ d.T)
    return out


# %% MoELayer: the router's input is detached
# caught by: test_gradients_reach_x_the_experts_and_the_router
# says: No gradient goes from the weights through the router to x: its input is detached.
class MoELayer(nn.Module):
    def __init__(self, d_model, d_hidden, n_experts, top_k, renormalise=True):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, n_experts, bias=False)
        self.gate_up = nn.Parameter(0.02 * torch.randn(n_experts, 2 * d_hidden, d_model))
        self.down = nn.Parameter(0.02 * torch.randn(n_experts, d_model, d_hidden))

    def forward(self, x):
        tokens = x.flatten(0, 1)
        weights, experts = route(self.router(tokens.detach()), self.top_k, self.renormalise)
        out = torch.zeros_like(tokens)
        for e, (gate_up, down) in enumerate(zip(self.gate_up.unbind(), self.down.unbind())):
            token, place = torch.where(experts == e)
            gate, up = (tokens[token] @ gate_up.T).chunk(2, -1)
            out = out.index_add(0, token, weights[token, place, None] * ((F.silu(gate) * up) @ down.T))
        return out.view_as(x)
