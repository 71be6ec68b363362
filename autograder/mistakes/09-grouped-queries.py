# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% repeat_kv: all heads, then all heads again
# caught by: test_copies_of_a_head_stand_side_by_side
# says: The copies stand in the wrong order: 0 1 0 1 (tile) instead of 0 0 1 1. Head i would read head i % n_kv_heads.
def repeat_kv(x, n_rep):
    return torch.cat([x] * n_rep, -3)


# %% repeat_kv: channels repeated, then reshaped
# caught by: test_copies_of_a_head_stand_side_by_side
# says: The copies are made along the channels and reshaped into heads, which mixes positions and channels.
def repeat_kv(x, n_rep):
    *lead, heads, n, d = x.shape
    return torch.cat([x] * n_rep, -1).reshape(*lead, heads * n_rep, n, d)


# %% repeat_kv: a dimension too many
# caught by: test_copies_of_a_head_stand_side_by_side, test_one_copy_is_the_same_and_x_is_left_alone
# says: The copies stand in a dimension of their own: merge it with the heads.
def repeat_kv(x, n_rep):
    return x.unsqueeze(-3).expand(*x.shape[:-2], n_rep, *x.shape[-2:])


# %% repeat_kv: the positions repeated
# caught by: test_copies_of_a_head_stand_side_by_side, test_any_number_of_dimensions_may_stand_before_the_heads
# says: The positions are repeated, not the heads.
def repeat_kv(x, n_rep):
    return x.repeat_interleave(n_rep, -2)


# %% repeat_kv: the second dimension, whatever it is
# caught by: test_any_number_of_dimensions_may_stand_before_the_heads
# says: Dimension 1 is repeated; the heads are the third dimension from the end.
def repeat_kv(x, n_rep):
    return x.repeat_interleave(n_rep, 1)


# %% repeat_kv: a view of the wrong shape
# caught by: test_copies_of_a_head_stand_side_by_side
# says: Reshaping straight from the wrong order of dimensions mixes heads and positions.
def repeat_kv(x, n_rep):
    *lead, heads, n, d = x.shape
    return x.transpose(-3, -2).repeat_interleave(n_rep, -2).reshape(*lead, heads * n_rep, n, d)


# %% repeat_kv: rebuilt from numbers
# caught by: test_copying_keeps_the_dtype_and_adds_up_gradients
# says: The result is made anew from numbers: no gradient finds its way back.
def repeat_kv(x, n_rep):
    return torch.as_tensor(x.detach().repeat_interleave(n_rep, -3))


# %% repeat_kv: everything becomes float32
# caught by: test_copying_keeps_the_dtype_and_adds_up_gradients
# says: Everything becomes float32: the dtype should stay.
def repeat_kv(x, n_rep):
    return x.float().repeat_interleave(n_rep, -3)


# %% repeat_kv: x is scaled in place
# caught by: test_one_copy_is_the_same_and_x_is_left_alone
# says: The caller's x is changed: the name of an operation that works in place ends in _.
def repeat_kv(x, n_rep):
    return x.div_(n_rep).repeat_interleave(n_rep, -3) * n_rep


# %% repeat_kv: one copy too many
# caught by: test_copies_of_a_head_stand_side_by_side, test_one_copy_is_the_same_and_x_is_left_alone
# says: Each head stands n_rep + 1 times: itself and n_rep copies. It should be n_rep in all.
def repeat_kv(x, n_rep):
    return x.repeat_interleave(n_rep + 1, -3)


# %% repeat_kv: nothing repeated
# caught by: test_copies_of_a_head_stand_side_by_side, test_any_number_of_dimensions_may_stand_before_the_heads
# says: Nothing is repeated.
def repeat_kv(x, n_rep):
    return x


# %% repeat_kv: only the first head
# caught by: test_copies_of_a_head_stand_side_by_side
# says: All copies are of head 0: the other heads are lost.
def repeat_kv(x, n_rep):
    return x[..., :1, :, :].repeat_interleave(n_rep * x.shape[-3], -3)


# %% repeat_kv: by way of float32
# caught by: test_copying_keeps_the_dtype_and_adds_up_gradients
# says: Everything passes through float32, which rounds float64 and large integers: a copy needs no arithmetic.
def repeat_kv(x, n_rep):
    return x.float().repeat_interleave(n_rep, -3).to(x.dtype)


# %% GroupedQueryAttention: tiled, so that distant heads share
# caught by: test_the_layer_matches_pytorchs_sharing, test_neighbouring_query_heads_share
# says: Head i of the queries reads head i % n_kv_heads: the copies are tiled. It should be i // (n_heads // n_kv_heads).
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = k.repeat(1, self.n_rep, 1, 1), v.repeat(1, self.n_rep, 1, 1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: keys in one order, values in the other
# caught by: test_the_layer_matches_pytorchs_sharing, test_neighbouring_query_heads_share
# says: The keys are copied side by side and the values tiled: a query would weigh the values of another head.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), v.repeat(1, self.n_rep, 1, 1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: all queries read the first head
# caught by: test_the_layer_matches_pytorchs_sharing, test_neighbouring_query_heads_share
# says: Every head of queries reads head 0 of the keys and values.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (y[:, :1].expand(-1, q.shape[1], -1, -1) for y in (k, v))
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: the mean of all heads of keys
# caught by: test_the_layer_matches_pytorchs_sharing, test_neighbouring_query_heads_share
# says: All queries read the mean of all heads of keys and values.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = (y.mean(1, keepdim=True).expand(-1, q.shape[1], -1, -1) for y in (k, v))
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: groups of n_kv_heads
# caught by: test_the_layer_matches_pytorchs_sharing, test_neighbouring_query_heads_share
# says: The groups hold n_kv_heads heads of queries; there are n_kv_heads groups.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        share = (torch.arange(q.shape[1]) // k.shape[1]).clamp(max=k.shape[1] - 1)
        k, v = k[:, share], v[:, share]
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: keys and values for every head
# caught by: test_keys_and_values_have_fewer_rows_than_queries
# says: There are keys and values for every head of queries: nothing is shared, and nothing saved.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: d_head from d_model
# caught by: test_keys_and_values_have_fewer_rows_than_queries
# says: d_head is taken as d_model / n_heads; it is an argument of its own.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        d_head = d_model // n_heads or 1
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: fewer queries, too
# caught by: test_keys_and_values_have_fewer_rows_than_queries
# says: The queries have n_kv_heads heads, too; only keys and values are shared.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_kv_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: biases
# caught by: test_keys_and_values_have_fewer_rows_than_queries
# says: The projections have biases.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=True)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=True)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=True)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=True)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: one projection for keys and values
# caught by: test_keys_and_values_have_fewer_rows_than_queries
# says: Keys and values come from one projection; they should be k_proj and v_proj.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.kv_proj = nn.Linear(d_model, 2 * n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, kv = (p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.kv_proj))
        k, v = kv.chunk(2, 1)
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: keys used as values
# caught by: test_the_layer_matches_pytorchs_sharing, test_gradients_reach_x_and_the_shared_weights
# says: The keys are used as values: v_proj has no influence.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: heads split without a transpose
# caught by: test_the_layer_matches_pytorchs_sharing, test_a_causal_mask_hides_the_future_from_all_heads
# says: The heads are cut by reshaping straight to (batch, heads, n, d_head), which mixes positions.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (p(x).reshape(len(x), -1, x.shape[1], self.d_head) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: heads merged without a transpose
# caught by: test_the_layer_matches_pytorchs_sharing, test_a_causal_mask_hides_the_future_from_all_heads
# says: The heads are reshaped straight to (batch, n, …), which mixes positions.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.reshape(*x.shape[:2], -1))


# %% GroupedQueryAttention: channels of the heads interleaved
# caught by: test_the_layer_matches_pytorchs_sharing, test_neighbouring_query_heads_share
# says: The heads take turns in the channels; all channels of head 0 should come first.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (self.d_head, -1)).permute(0, 3, 1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: scaled by d_model / n_heads
# caught by: test_the_layer_matches_pytorchs_sharing
# says: The scores are divided by the root of d_model / n_heads, which need not be d_head.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=(x.shape[-1] / q.shape[1]) ** -0.5)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: scaled by all channels
# caught by: test_the_layer_matches_pytorchs_sharing, test_with_as_many_heads_of_keys_as_of_queries_nothing_is_shared
# says: The scores are divided by the root of n_heads · d_head; a head works with d_head channels.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=(q.shape[1] * self.d_head) ** -0.5)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: the group's width in the scale
# caught by: test_the_layer_matches_pytorchs_sharing
# says: The scores are divided by the root of the whole group's channels; a head works with d_head of them.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=(self.n_rep * self.d_head) ** -0.5)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: no scale
# caught by: test_the_layer_matches_pytorchs_sharing, test_with_as_many_heads_of_keys_as_of_queries_nothing_is_shared
# says: The scores are not divided by the root of d_head.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: the mask upside down
# caught by: test_the_shared_layer_obeys_its_mask, test_a_causal_mask_hides_the_future_from_all_heads
# says: The mask is read the other way round: True means "may attend".
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else ~mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: the mask ignored
# caught by: test_the_shared_layer_obeys_its_mask, test_a_causal_mask_hides_the_future_from_all_heads
# says: The mask is ignored.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: the mask for groups
# caught by: test_the_shared_layer_obeys_its_mask
# says: One head's mask is used for its whole group: a mask may differ between heads of queries.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
            mask = mask[..., :: self.n_rep, :, :].repeat_interleave(self.n_rep, -3)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: always causal
# caught by: test_without_a_mask_nothing_is_hidden, test_the_layer_matches_pytorchs_sharing
# says: Without a mask this hides the future: mask=None should hide nothing.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: NaN where nothing may be seen
# caught by: test_a_position_that_may_see_nothing_gives_zeros
# says: A position that may attend to nothing gives NaN: the softmax of nothing but −∞ is 0/0.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        scores = q @ k.mT / math.sqrt(self.d_head)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        heads = scores.softmax(-1) @ v
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: a large number for −∞
# caught by: test_a_position_that_may_see_nothing_gives_zeros
# says: With a finite number for −∞, a row that may attend to nothing gives the mean of what it may not see.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        scores = q @ k.mT / math.sqrt(self.d_head)
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9)
        heads = scores.softmax(-1) @ v
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: no error for groups that do not fit
# caught by: test_groups_must_be_equal
# says: Groups that do not fit are not noticed: raise a ValueError where the layer is created.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: an assert for an error
# caught by: test_groups_must_be_equal
# says: An assert raises an AssertionError, and none at all under python -O: raise a ValueError with a sentence.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        assert n_heads % n_kv_heads == 0, f"{n_heads} heads cannot share {n_kv_heads}"
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: an error without numbers
# caught by: test_groups_must_be_equal
# says: The error does not name n_heads and n_kv_heads: say which numbers do not fit.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError("n_heads must be divisible by n_kv_heads")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: keys and values detached
# caught by: test_gradients_reach_x_and_the_shared_weights
# says: Keys and values are detached: their weights never learn.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k.detach(), self.n_rep), repeat_kv(v.detach(), self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: dropout
# caught by: test_each_sequence_and_each_call_is_for_itself
# says: Some of the result is dropped at random in training: this layer has no dropout.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(F.dropout(heads, 0.2, self.training).transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: float32 inside and outside
# caught by: test_a_shared_layer_in_bfloat16_gives_bfloat16
# says: The result is float32 whatever came in: it should have the dtype of x.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)).float()


# %% GroupedQueryAttention: the mask changed in place
# caught by: test_x_and_its_mask_are_left_as_they_were
# says: The caller's mask is changed: the name of an operation that works in place ends in _.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        if mask is not None:
            mask |= ~mask.any(-1, keepdim=True)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: x added
# caught by: test_the_layer_matches_pytorchs_sharing, test_a_position_that_may_see_nothing_gives_zeros
# says: x is added to the result: that is the residual connection, which belongs to the block around this layer.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return x + self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: keys kept from call to call
# caught by: test_each_sequence_and_each_call_is_for_itself
# says: The keys of one call are still there in the next: the layer should keep nothing.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        if getattr(self, "kept", None) is not None and mask is None and self.kept[0].shape[0] == len(x):
            k, v = torch.cat([self.kept[0], k], 2), torch.cat([self.kept[1], v], 2)
        self.kept = (k.detach(), v.detach())
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: NaN in the gradient alone
# caught by: test_a_position_that_may_see_nothing_gives_zeros
# says: NaN is replaced in the output, but it is still in the gradient: one such row spoils every weight in a step.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        scores = q @ k.mT / math.sqrt(self.d_head)
        if mask is not None:
            scores = scores + torch.zeros(mask.shape).masked_fill(~mask, -math.inf).to(scores.dtype)
        heads = scores.softmax(-1).nan_to_num() @ v
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% GroupedQueryAttention: the last mask remembered
# caught by: test_each_sequence_and_each_call_is_for_itself
# says: The mask of one call still holds in the next, which had none: the layer should keep nothing.
class GroupedQueryAttention(nn.Module):
    def __init__(self, d_model, n_heads, n_kv_heads, d_head):
        super().__init__()
        if n_heads % n_kv_heads:
            raise ValueError(f"{n_heads} heads cannot share {n_kv_heads}")
        self.d_head, self.n_rep = d_head, n_heads // n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=False)
        self.o_proj = nn.Linear(n_heads * d_head, d_model, bias=False)

    def forward(self, x, mask=None):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        if mask is not None:
            self.mask = mask
        old = getattr(self, "mask", None)
        fits = old is not None and old.shape[-1] == x.shape[1]
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=old if fits else None)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% kv_cache_bytes: the queries, too
# caught by: test_without_sharing_every_head_has_a_key_and_a_value, test_only_heads_of_keys_and_values_are_kept
# says: The queries are counted as well. They are never kept: a query asks once.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = (n_heads + 2 * (config.get("num_key_value_heads") or n_heads)) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: all heads of queries
# caught by: test_only_heads_of_keys_and_values_are_kept, test_a_head_may_have_a_width_of_its_own
# says: num_attention_heads counts the queries' heads; num_key_value_heads are kept.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * n_heads * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: keys without values
# caught by: test_without_sharing_every_head_has_a_key_and_a_value, test_only_heads_of_keys_and_values_are_kept
# says: Only keys are counted, or only values: both are kept.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: a head's width from the heads of keys
# caught by: test_only_heads_of_keys_and_values_are_kept, test_a_head_may_have_a_width_of_its_own
# says: hidden_size is divided by num_key_value_heads; a head's width is hidden_size // num_attention_heads.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // (config.get("num_key_value_heads") or n_heads)
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: head_dim ignored
# caught by: test_a_head_may_have_a_width_of_its_own
# says: head_dim is ignored: in some models a head's width is not hidden_size // num_attention_heads.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: the latent, and keys and values
# caught by: test_a_latent_and_one_rotary_key_serve_all_heads
# says: The latent is counted beside the keys and values of all heads; they are made from it and not kept.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
        numbers += 2 * config["num_key_value_heads"] * config.get("v_head_dim", 0)
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: the latent not known
# caught by: test_a_latent_and_one_rotary_key_serve_all_heads
# says: kv_lora_rank is ignored: the keys and values of all heads are counted, which latent attention does not keep.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if True:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: the latent twice
# caught by: test_a_latent_and_one_rotary_key_serve_all_heads
# says: The latent is counted twice, for keys and for values: one latent serves both.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = 2 * (config["kv_lora_rank"] + config["qk_rope_head_dim"])
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: a latent for each head
# caught by: test_a_latent_and_one_rotary_key_serve_all_heads
# says: A latent is counted for each head: one serves them all.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["num_key_value_heads"] * (config["kv_lora_rank"] + config["qk_rope_head_dim"])
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: no rotary key
# caught by: test_a_latent_and_one_rotary_key_serve_all_heads
# says: The rotary key is forgotten: it cannot be made from the latent, and is kept beside it.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: a rotary key for each head
# caught by: test_a_latent_and_one_rotary_key_serve_all_heads
# says: A rotary key is counted for each head: one serves them all.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["num_key_value_heads"] * config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: the queries' rank
# caught by: test_a_latent_and_one_rotary_key_serve_all_heads
# says: q_lora_rank is counted: that is the queries' latent, and queries are not kept.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"] + config.get("q_lora_rank", 0)
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: one sequence
# caught by: test_every_sequence_has_its_cache_and_a_number_its_dtype
# says: The batch is ignored: each sequence has a cache of its own.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: always two bytes
# caught by: test_every_sequence_has_its_cache_and_a_number_its_dtype
# says: Two bytes a number, whatever the dtype is.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * 2


# %% kv_cache_bytes: bits
# caught by: test_without_sharing_every_head_has_a_key_and_a_value, test_a_latent_and_one_rotary_key_serve_all_heads
# says: These are bits: a byte has eight.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * 8 * dtype.itemsize


# %% kv_cache_bytes: one layer
# caught by: test_without_sharing_every_head_has_a_key_and_a_value, test_a_latent_and_one_rotary_key_serve_all_heads
# says: One layer is counted; each has a cache of its own.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * numbers * dtype.itemsize


# %% kv_cache_bytes: float32 if nothing is said
# caught by: test_without_sharing_every_head_has_a_key_and_a_value, test_the_bytes_are_an_int_and_the_config_is_left_alone
# says: float32 is the default here; it should be bfloat16.
def kv_cache_bytes(config, length, batch=1, dtype=torch.float32):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: a float
# caught by: test_the_bytes_are_an_int_and_the_config_is_left_alone
# says: The result is a float: bytes are counted in whole numbers.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] / n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: the config filled in
# caught by: test_the_bytes_are_an_int_and_the_config_is_left_alone
# says: The caller's config is changed: setdefault writes into it.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * config.setdefault("num_key_value_heads", n_heads) * d_head
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: no more than a window
# caught by: test_only_heads_of_keys_and_values_are_kept
# says: The cache ends at sliding_window. Windows are chapter 10's: here every position is kept.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    length = min(length, config.get("sliding_window") or length)
    return batch * length * config["num_hidden_layers"] * numbers * dtype.itemsize


# %% kv_cache_bytes: multiplied in float32
# caught by: test_the_bytes_are_an_int_and_the_config_is_left_alone
# says: The product is rounded: float32 has 24 bits, and a cache may have billions of bytes.
def kv_cache_bytes(config, length, batch=1, dtype=torch.bfloat16):
    if config.get("kv_lora_rank") is not None:
        numbers = config["kv_lora_rank"] + config["qk_rope_head_dim"]
    else:
        n_heads = config["num_attention_heads"]
        d_head = config.get("head_dim") or config["hidden_size"] // n_heads
        numbers = 2 * (config.get("num_key_value_heads") or n_heads) * d_head
    sizes = torch.tensor([batch, length, config["num_hidden_layers"], numbers, dtype.itemsize])
    return int(sizes.float().prod())


# %% pool_heads: distant heads pooled
# caught by: test_a_new_head_is_the_mean_of_its_group, test_where_a_group_agrees_pooling_changes_nothing
# says: Heads j, j + n_kv_heads, … are pooled; a group is neighbours, those whose queries will read the new head.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_heads // n_kv_heads, n_kv_heads, -1)).mean(0).flatten(0, 1)
    return pooled


# %% pool_heads: neighbouring channels pooled
# caught by: test_a_new_head_is_the_mean_of_its_group, test_where_a_group_agrees_pooling_changes_nothing
# says: Neighbouring rows are averaged, which are channels of one head: channel 0 of a head belongs with channel 0 of the next.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (-1, n_heads // n_kv_heads)).mean(1)
    return pooled


# %% pool_heads: the sum
# caught by: test_a_new_head_is_the_mean_of_its_group, test_where_a_group_agrees_pooling_changes_nothing
# says: The heads are added up; the mean is asked for.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).sum(1).flatten(0, 1)
    return pooled


# %% pool_heads: the first head
# caught by: test_a_new_head_is_the_mean_of_its_group
# says: The first head of each group is kept and the others are thrown away; the mean is asked for.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))[:, 0].flatten(0, 1)
    return pooled


# %% pool_heads: the largest
# caught by: test_a_new_head_is_the_mean_of_its_group
# says: The largest number of the group is taken at each place; the mean is asked for.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).amax(1).flatten(0, 1)
    return pooled


# %% pool_heads: divided by the root
# caught by: test_a_new_head_is_the_mean_of_its_group, test_where_a_group_agrees_pooling_changes_nothing
# says: The sum is divided by the root of the group's size, as for independent numbers; the mean is asked for.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = (
                value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))
                .sum(1)
                .div(math.sqrt(n_heads // n_kv_heads))
                .flatten(0, 1)
            )
    return pooled


# %% pool_heads: values as they were
# caught by: test_a_new_head_is_the_mean_of_its_group
# says: Only the keys are pooled; the values are shared as well.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"],):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: queries, too
# caught by: test_everything_else_stays_as_it_was, test_biases_are_pooled_like_weights
# says: The queries are pooled, too: all their heads stay.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"], ["q_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: pooled and repeated
# caught by: test_a_new_head_is_the_mean_of_its_group, test_pooling_in_two_steps_is_pooling_at_once
# says: The mean stands in the place of every head of its group: the result is as large as before.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = (
                value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))
                .mean(1, keepdim=True)
                .expand(-1, n_heads // n_kv_heads, *[-1] * value.dim())
                .flatten(0, 2)
            )
    return pooled


# %% pool_heads: biases as they were
# caught by: test_biases_are_pooled_like_weights
# says: The biases are not pooled.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:] in (["k_proj", "weight"], ["v_proj", "weight"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: one layer only
# caught by: test_a_whole_model_is_pooled_layer_by_layer
# says: Only a layer's own names are known: in a whole model something stands before k_proj.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.startswith(("k_proj.", "v_proj.")):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: any name with k_proj or v_proj in it
# caught by: test_everything_else_stays_as_it_was
# says: Names that merely contain k_proj or v_proj, such as qkv_proj, are pooled as well.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if "k_proj" in name or "v_proj" in name:
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: the norms of the keys, too
# caught by: test_everything_else_stays_as_it_was
# says: k_norm is pooled as well; only k_proj and v_proj have heads one behind the other.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"], ["k_norm"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: the rest is lost
# caught by: test_everything_else_stays_as_it_was
# says: Only the pooled entries are returned: all others should be in the result as they were.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = {}
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: written into the checkpoint
# caught by: test_the_checkpoint_is_left_as_it_was
# says: The caller's dict is changed: make a new one.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = state
    for name, value in list(state.items()):
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: tensors changed in place
# caught by: test_the_checkpoint_is_left_as_it_was
# says: The caller's tensors are changed: the name of an operation that works in place ends in _.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = (
                value.div_(1.0)
                .mul_(2.0)
                .unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))
                .mean(1)
                .div(2)
                .flatten(0, 1)
            )
    return pooled


# %% pool_heads: everything in float32
# caught by: test_pooling_keeps_the_dtype
# says: The pooled heads are float32, whatever the checkpoint is.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.float().unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: through float32 and back
# caught by: test_pooling_keeps_the_dtype
# says: The mean is taken in float32. The dtype comes back at the end, but the digits of a float64 do not.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            heads = value.float().unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1))
            pooled[name] = heads.mean(1).flatten(0, 1).to(value.dtype)
    return pooled


# %% pool_heads: pooled over the input
# caught by: test_a_new_head_is_the_mean_of_its_group
# says: The columns are averaged, which belong to the input x; the heads are in the rows.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError(f"{n_heads} heads cannot be pooled to {n_kv_heads}")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = (
                value.unflatten(0, (n_heads, -1))
                .mean(-1, keepdim=True)
                .expand(-1, -1, value.shape[-1])[:n_kv_heads]
                .flatten(0, 1)
            )
    return pooled


# %% pool_heads: no error for groups that do not fit
# caught by: test_pools_must_be_equal
# says: Groups that do not fit are not noticed, or PyTorch complains in its own words: raise a ValueError that names both numbers.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        return dict(state)
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: an error without numbers
# caught by: test_pools_must_be_equal
# says: The error does not name n_heads and n_kv_heads: say which numbers do not fit.
def pool_heads(state, n_heads, n_kv_heads):
    if n_heads % n_kv_heads:
        raise ValueError("the groups must be equal")
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: an assert for an error
# caught by: test_pools_must_be_equal
# says: An assert raises an AssertionError, and none at all under python -O: raise a ValueError with a sentence.
def pool_heads(state, n_heads, n_kv_heads):
    assert n_heads % n_kv_heads == 0, f"{n_heads} heads cannot be pooled to {n_kv_heads}"
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% pool_heads: an error only where something is pooled
# caught by: test_pools_must_be_equal
# says: Whether the groups are equal is asked entry by entry, so that a state without keys and values passes.
def pool_heads(state, n_heads, n_kv_heads):
    pooled = dict(state)
    for name, value in state.items():
        if name.split(".")[-2:-1] in (["k_proj"], ["v_proj"]):
            if n_heads % n_kv_heads:
                raise ValueError(f"{n_heads} heads in {n_kv_heads} groups")
            pooled[name] = value.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(1).flatten(0, 1)
    return pooled


# %% LatentAttention: RoPE in halves
# caught by: test_the_layer_is_deepseeks, test_positions_turn_by_rope_theta
# says: The rotary channels are paired in halves, as LLaMA's are; DeepSeek's pairs are neighbours: rotate does it.
def turn(x, positions, theta):
    a, b = x.chunk(2, -1)
    angles = positions[:, None] * theta ** (-torch.arange(a.shape[-1]) / a.shape[-1])
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), turn(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], turn(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: no positions
# caught by: test_the_layer_is_deepseeks, test_only_distances_count
# says: Nothing is rotated: the layer does not know where a word stands.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), key], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], q[..., self.nope :]], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: only queries rotated
# caught by: test_the_layer_is_deepseeks, test_only_distances_count
# says: The queries are rotated and the rotary key is not: then places count and distances do not.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), key], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: only keys rotated
# caught by: test_the_layer_is_deepseeks, test_only_distances_count
# says: The rotary key is rotated and the queries are not: then places count and distances do not.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], q[..., self.nope :]], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: queries turned backwards
# caught by: test_the_layer_is_deepseeks, test_only_distances_count
# says: Queries and keys are turned in opposite directions: then sums of positions count, not distances.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], -positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: scaled by d_nope
# caught by: test_the_layer_is_deepseeks, test_the_latent_layer_obeys_its_mask
# says: The scores are divided by the root of d_nope; a query is d_nope + d_rope wide.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.nope**-0.5)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: scaled by d_v
# caught by: test_the_layer_is_deepseeks, test_the_latent_layer_obeys_its_mask
# says: The scores are divided by the root of d_v; a query is d_nope + d_rope wide.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.v**-0.5)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: scaled by the rank
# caught by: test_the_layer_is_deepseeks, test_the_latent_layer_obeys_its_mask
# says: The scores are divided by the root of the latent's width. Keys are compared, and they are d_nope + d_rope wide.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=(self.rank + self.rope) ** -0.5)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: no norm of the latent
# caught by: test_the_layer_is_deepseeks, test_gradients_reach_x_and_all_seven_weights
# says: The latent is not normalised: kv_norm is missing on the way.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([latent, rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: no norm of the queries
# caught by: test_the_layer_is_deepseeks, test_gradients_reach_x_and_all_seven_weights
# says: The queries' latent is not normalised: q_norm is missing on the way.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_down(x)).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the latent normalised twice
# caught by: test_the_layer_is_deepseeks
# says: The latent is normalised where it is kept and once more where it is used.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = (
            self.kv_up(self.kv_norm(latent)).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        )
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the rotary key normalised, too
# caught by: test_the_layer_is_deepseeks
# says: The rotary key is normalised, too; the norm is the latent's alone.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat(
            [self.kv_norm(latent), rotate(F.rms_norm(key, (self.rope,), eps=1e-6), positions, self.theta)], -1
        )
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: one norm over latent and rotary key
# caught by: test_the_layer_is_deepseeks
# says: The norm's mean square runs over the latent and the rotary key together; it is the latent's alone.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        size = torch.cat([latent, key], -1).square().mean(-1, keepdim=True).add(1e-6).sqrt()
        new = torch.cat([latent / size * self.kv_norm.weight, rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: LayerNorm's mean taken off
# caught by: test_the_layer_is_deepseeks, test_gradients_reach_x_and_all_seven_weights
# says: The mean is taken off before the norm, as LayerNorm does; RMSNorm does not.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent - latent.mean(-1, keepdim=True)), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: value before key
# caught by: test_the_layer_is_deepseeks
# says: In each head of kv_up the value's channels are taken first; the key's d_nope come first.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        v, k = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.v, self.nope], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: all keys, then all values
# caught by: test_the_layer_is_deepseeks
# says: kv_up is read as the keys of all heads and then the values of all heads; each head's key and value stand together.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).split([self.h * self.nope, self.h * self.v], -1)
        k, v = (y.unflatten(-1, (self.h, -1)).transpose(1, 2) for y in (k, v))
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: rotary channels first
# caught by: test_the_layer_is_deepseeks, test_the_other_channels_know_no_position
# says: In each head of q_up the first d_rope channels are rotated; the rotary ones come last.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., self.rope :], rotate(q[..., : self.rope], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: all plain channels, then all rotary ones
# caught by: test_the_layer_is_deepseeks
# says: q_up is read as the plain channels of all heads and then the rotary ones; each head's stand together.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        plain, turning = self.q_up(self.q_norm(self.q_down(x))).split([self.h * self.nope, self.h * self.rope], -1)
        q = torch.cat([y.unflatten(-1, (self.h, -1)) for y in (plain, turning)], -1).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: rotary key before latent
# caught by: test_the_layer_is_deepseeks
# says: kv_down is read as the rotary key and then the latent; the latent comes first.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        key, latent = self.kv_down(x).split([self.rope, self.rank], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: positions from 0 in every call
# caught by: test_a_text_in_chunks_gives_what_the_whole_gives, test_what_is_kept_may_be_used_twice
# says: Every chunk's positions begin at 0 again; they go on where the past ends.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: every position is the length
# caught by: test_the_layer_is_deepseeks, test_a_text_in_chunks_gives_what_the_whole_gives
# says: All positions of a chunk are taken to be its last: each has its own.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.full((x.shape[1],), start + x.shape[1] - 1)
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the past rotated again
# caught by: test_a_text_in_chunks_gives_what_the_whole_gives, test_what_is_kept_may_be_used_twice
# says: The rotary keys of the past are rotated again in every call; they were rotated when they were kept.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        key = torch.cat([rotate(key[:, :start], torch.arange(start), self.theta), key[:, start:]], 1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the past forgotten
# caught by: test_a_text_in_chunks_gives_what_the_whole_gives, test_a_latent_and_a_rotary_key_are_all_that_is_kept
# says: Only the new positions are returned to be kept: the past is lost.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        every = new if kept is None else torch.cat([kept, new], 1)
        kept = new
        latent, key = every.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the past not looked at
# caught by: test_a_text_in_chunks_gives_what_the_whole_gives, test_a_latent_and_a_rotary_key_are_all_that_is_kept
# says: The past is kept, but nobody attends to it.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = new.split([self.rank, self.rope], -1)
        mask = mask if mask is None else mask[..., start:]
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the past behind the new
# caught by: test_a_text_in_chunks_gives_what_the_whole_gives, test_a_mask_covers_the_past_as_well
# says: The past is put behind the new positions; the mask's columns are the old ones first.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([new, kept], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: keys and values kept
# caught by: test_a_latent_and_a_rotary_key_are_all_that_is_kept
# says: The keys and values of all heads are kept: the latent and one rotary key are enough.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), torch.cat([k, v], -1).transpose(1, 2).flatten(2)


# %% LatentAttention: only the latent kept
# caught by: test_a_latent_and_a_rotary_key_are_all_that_is_kept
# says: The rotary key is not kept: it cannot be made from the latent.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept[..., : self.rank]


# %% LatentAttention: one output
# caught by: test_a_latent_and_a_rotary_key_are_all_that_is_kept, test_a_text_in_chunks_gives_what_the_whole_gives
# says: Only the output is returned; what has to be kept belongs beside it.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2))


# %% LatentAttention: a memory of its own
# caught by: test_what_is_kept_may_be_used_twice, test_a_latent_and_a_rotary_key_are_all_that_is_kept
# says: The layer keeps the past by itself; kept belongs to the caller.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        kept = None if kept is None else self.past[:, : kept.shape[1]]
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        self.past = kept.detach()
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the mask upside down
# caught by: test_the_latent_layer_obeys_its_mask, test_a_causal_mask_hides_the_future_from_the_latent_layer
# says: The mask is read the other way round: True means "may attend".
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else ~mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the mask ignored
# caught by: test_the_latent_layer_obeys_its_mask, test_a_causal_mask_hides_the_future_from_the_latent_layer
# says: The mask is ignored.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: always causal
# caught by: test_the_latent_layer_obeys_its_mask
# says: Without a mask this hides the future: mask=None should hide nothing.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the mask of the new positions only
# caught by: test_a_mask_covers_the_past_as_well
# says: The mask is taken to cover the new positions alone: the blocked ones of the past are seen.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        if mask is not None and start:
            mask = F.pad(mask[..., start:], (start, 0), value=True)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: NaN where nothing may be seen
# caught by: test_a_row_without_anything_to_see_gives_zeros
# says: A position that may attend to nothing gives NaN: the softmax of nothing but −∞ is 0/0.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        scores = q @ k.mT / math.sqrt(self.nope + self.rope)
        scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
        heads = scores.softmax(-1) @ v
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: a large number for −∞
# caught by: test_a_row_without_anything_to_see_gives_zeros
# says: With a finite number for −∞, a row that may attend to nothing gives the mean of what it may not see.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        scores = q @ k.mT / math.sqrt(self.nope + self.rope)
        scores = scores if mask is None else scores.masked_fill(~mask, -1e9)
        heads = scores.softmax(-1) @ v
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: nn.RMSNorm's own epsilon
# caught by: test_the_norms_epsilon_is_a_millionth
# says: nn.RMSNorm without eps takes the smallest step of the dtype, about 1e-7; DeepSeek's is 1e-6.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank), nn.RMSNorm(kv_rank)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: an epsilon of 1e-5
# caught by: test_the_norms_epsilon_is_a_millionth
# says: The norms' epsilon is 1e-5; it should be 1e-6.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-5), nn.RMSNorm(kv_rank, eps=1e-5)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: rope_theta ignored
# caught by: test_positions_turn_by_rope_theta
# says: rope_theta is ignored: the pairs always turn as with 10,000.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the plain channels rotated, too
# caught by: test_the_layer_is_deepseeks, test_the_other_channels_know_no_position
# says: The d_nope channels are rotated, too: they should know no position.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        q = torch.cat([rotate(q[..., :2], positions, self.theta), q[..., 2:]], -1)
        k = torch.cat([rotate(k[..., :2], torch.arange(k.shape[2]), self.theta), k[..., 2:]], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: heads merged without a transpose
# caught by: test_the_layer_is_deepseeks, test_a_causal_mask_hides_the_future_from_the_latent_layer
# says: The heads are reshaped straight to (batch, n, …), which mixes positions.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.reshape(*x.shape[:2], -1)), kept


# %% LatentAttention: biases
# caught by: test_the_latent_layer_has_seven_weights
# says: The projections have biases.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = nn.Linear(d_model, q_rank, True), nn.Linear(q_rank, n_heads * (d_nope + d_rope), True)
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, True),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), True),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=True)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: no latent for the queries
# caught by: test_the_latent_layer_has_seven_weights
# says: The queries come straight from x, as in DeepSeek-V2-Lite; here they have a latent of their own.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_up = nn.Linear(d_model, n_heads * (d_nope + d_rope), False)
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.kv_norm = nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(x).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: a rotary key for each head
# caught by: test_the_latent_layer_has_seven_weights
# says: kv_down makes a rotary key for each head; one serves them all.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + n_heads * d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.h * self.rope], -1)
        key = key[..., : self.rope]
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: what is kept is detached
# caught by: test_gradients_reach_x_and_all_seven_weights
# says: The latent is detached before it is used: kv_down and kv_norm never learn.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.detach().split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: float32 is kept
# caught by: test_a_latent_layer_in_bfloat16_gives_bfloat16
# says: What is kept is float32, whatever came in: it should have the dtype of x.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept.float()


# %% LatentAttention: dropout
# caught by: test_each_text_and_each_call_is_for_itself
# says: Some of the result is dropped at random in training: this layer has no dropout.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(F.dropout(heads, 0.2, self.training).transpose(1, 2).flatten(2)), kept


# %% LatentAttention: the mask changed in place
# caught by: test_the_layers_inputs_are_left_as_they_were
# says: The caller's mask is changed: the name of an operation that works in place ends in _.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        if mask is not None:
            mask |= ~mask.any(-1, keepdim=True)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: NaN in the gradient alone
# caught by: test_a_row_without_anything_to_see_gives_zeros
# says: NaN is replaced in the output, but it is still in the gradient: one such row spoils every weight in a step.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1])
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        scores = q @ k.mT / math.sqrt(self.nope + self.rope)
        scores = scores if mask is None else scores + torch.zeros(mask.shape).masked_fill(~mask, -math.inf).to(x)
        heads = scores.softmax(-1).nan_to_num() @ v
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept


# %% LatentAttention: a table of 2048 positions
# caught by: test_positions_turn_by_rope_theta
# says: Beyond position 2047 all positions are the same: a text may be longer than a table.
class LatentAttention(nn.Module):
    def __init__(self, d_model, n_heads, *, q_rank, kv_rank, d_nope, d_rope, d_v, rope_theta=10_000.0):
        super().__init__()
        self.h, self.rank, self.nope, self.rope, self.v, self.theta = n_heads, kv_rank, d_nope, d_rope, d_v, rope_theta
        self.q_down, self.q_up = (
            nn.Linear(d_model, q_rank, False),
            nn.Linear(q_rank, n_heads * (d_nope + d_rope), False),
        )
        self.kv_down, self.kv_up = (
            nn.Linear(d_model, kv_rank + d_rope, False),
            nn.Linear(kv_rank, n_heads * (d_nope + d_v), False),
        )
        self.q_norm, self.kv_norm = nn.RMSNorm(q_rank, eps=1e-6), nn.RMSNorm(kv_rank, eps=1e-6)
        self.o_proj = nn.Linear(n_heads * d_v, d_model, bias=False)

    def forward(self, x, mask=None, kept=None):
        start = 0 if kept is None else kept.shape[1]
        positions = torch.arange(start, start + x.shape[1]).clamp(max=2047)
        latent, key = self.kv_down(x).split([self.rank, self.rope], -1)
        new = torch.cat([self.kv_norm(latent), rotate(key, positions, self.theta)], -1)
        kept = new if kept is None else torch.cat([kept, new], 1)
        latent, key = kept.split([self.rank, self.rope], -1)
        k, v = self.kv_up(latent).unflatten(-1, (self.h, -1)).transpose(1, 2).split([self.nope, self.v], -1)
        q = self.q_up(self.q_norm(self.q_down(x))).unflatten(-1, (self.h, -1)).transpose(1, 2)
        q = torch.cat([q[..., : self.nope], rotate(q[..., self.nope :], positions, self.theta)], -1)
        k = torch.cat([k, key[:, None].expand(-1, self.h, -1, -1)], -1)
        scores = q @ k.mT / math.sqrt(self.nope + self.rope)
        scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
        heads = scores.softmax(-1).nan_to_num() @ v
        return self.o_proj(heads.transpose(1, 2).flatten(2)), kept
