# Wrong answers that people really give. The set-up cell of the chapter runs before each of them.


# %% Block: no mask
# caught by: test_the_block_is_that_of_gpt2, test_a_block_never_looks_ahead
# says: There is no causal mask: a position sees those after it, and so the answer.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: the mask is off by one
# caught by: test_the_block_is_that_of_gpt2, test_a_block_never_looks_ahead
# says: The mask begins one place too late, so every position sees the next one, which it should predict.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril(1)
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: a position does not see itself
# caught by: test_the_block_is_that_of_gpt2
# says: The mask leaves out the diagonal: a position should see itself, and the first has nothing else.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril(-1)
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1).nan_to_num(0)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: zeroed after the softmax
# caught by: test_the_block_is_that_of_gpt2
# says: The future is zeroed after the softmax, so that the shares of a row no longer add up to one.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.softmax(-1) * mask
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: the norm after the sum
# caught by: test_the_block_is_that_of_gpt2, test_the_block_adds_to_what_came_in, test_the_stream_itself_is_not_normalised
# says: The norms stand after the sums: that is the block of 2017 and of GPT-1. GPT-2 normalises what a sub-layer reads.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


# %% Block: the residual taken after the norm
# caught by: test_the_block_is_that_of_gpt2, test_the_block_adds_to_what_came_in
# says: The normalised copy is what is added to: the sum must be with the stream as it came.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        y = self.norm1(x)
        x = y + self.attention(y)
        y = self.norm2(x)
        return y + self.mlp(y)


# %% Block: the second residual taken after the norm
# caught by: test_the_block_is_that_of_gpt2, test_the_block_adds_to_what_came_in
# says: In the feed-forward half the normalised copy is what is added to: the sum must be with the stream.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        x = self.norm2(x)
        return x + self.mlp(x)


# %% Block: no residual around attention
# caught by: test_the_block_is_that_of_gpt2, test_the_block_adds_to_what_came_in
# says: What attention gives replaces the stream: it should be added to it.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: no residual around the feed-forward part
# caught by: test_the_block_is_that_of_gpt2, test_the_block_adds_to_what_came_in
# says: What the feed-forward part gives replaces the stream: it should be added to it.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return self.mlp(self.norm2(x))


# %% Block: both sub-layers side by side
# caught by: test_the_block_is_that_of_gpt2
# says: Both sub-layers read x: the feed-forward part should read the stream after attention was added.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        return x + self.attention(self.norm1(x)) + self.mlp(self.norm2(x))


# %% Block: one norm for both
# caught by: test_the_block_is_that_of_gpt2
# says: norm1 is used in both places, and norm2 never.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm1(x))


# %% Block: no norm before the feed-forward part
# caught by: test_the_block_is_that_of_gpt2
# says: The feed-forward part reads the stream as it is: norm2 is missing.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(x)


# %% Block: the exact GELU
# caught by: test_gelu_is_in_its_tanh_form
# says: This is the exact (erf) GELU, PyTorch's default; GPT-2 has the tanh form.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: ReLU
# caught by: test_the_block_is_that_of_gpt2, test_gelu_is_in_its_tanh_form
# says: The activation is ReLU, as in the Transformer of 2017; GPT-2 has GELU.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.relu(self.up_proj(x)))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: eps of 1e-6
# caught by: test_eps_is_one_in_a_hundred_thousand
# says: The norms have an eps of 1e-6: GPT-2 has 1e-5.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model, eps=1e-6)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-6)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: no biases in attention
# caught by: test_the_block_has_the_stated_parameters
# says: The four projections of attention have no biases: in GPT-2 they do.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: the root of d_model
# caught by: test_the_block_is_that_of_gpt2
# says: Scores are divided by √d_model: it is the width of one head whose root divides them.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: heads cut without a transpose
# caught by: test_the_block_is_that_of_gpt2, test_a_block_never_looks_ahead
# says: The heads are cut by reshaping straight to (batch, n_heads, n, d_head), which mixes positions.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).reshape(b, self.n_heads, n, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: heads merged without a transpose
# caught by: test_the_block_is_that_of_gpt2, test_a_block_never_looks_ahead
# says: The heads' results are reshaped straight to (batch, n, d_model), which mixes positions.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: heads interleaved
# caught by: test_the_block_is_that_of_gpt2
# says: Channel c goes to head c % n_heads: head 0 should take the first d_head channels, head 1 the next.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (
            p(x).view(b, n, -1, self.n_heads).permute(0, 3, 1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).permute(0, 2, 3, 1).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: dropout
# caught by: test_a_block_has_no_dropout_and_no_memory
# says: Some of the result is dropped in training: this block has no dropout.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + F.dropout(self.mlp(self.norm2(x)), 0.1, self.training)


# %% Block: the mask as a buffer
# caught by: test_the_block_has_the_stated_parameters
# says: A mask is kept in the state dict: register it with persistent=False, or make it in forward.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.register_buffer("mask", torch.ones(1024, 1024, dtype=torch.bool).tril())
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = self.mask[:n, :n]
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: x changed in place
# caught by: test_a_block_takes_other_dtypes_and_leaves_x_alone
# says: x += … changes the caller's tensor: write x = x + ….
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x += self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: a mask of -100
# caught by: test_a_block_never_looks_ahead
# says: Hidden scores only get 100 taken away: a key that fits well enough is seen all the same. Use −∞.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = (scores - 100.0 * ~mask).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: scores of zero are taken for the mask
# caught by: test_the_block_is_that_of_gpt2
# says: A score of 0 is taken for a hidden one: the mask should be made of positions, not of scores.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not divisible by n_heads {n_heads}")
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        weights = scores.masked_fill(scores.tril() == 0, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% Block: no error for heads that do not fit
# caught by: test_heads_of_a_block_share_the_channels_equally
# says: Heads that do not fit are not noticed: raise a ValueError where the block is created.
class Attention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = (p(x).view(b, n, self.n_heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.n_heads)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class MLP(nn.Module):
    def __init__(self, d_model):
        super().__init__()
        self.up_proj = nn.Linear(d_model, 4 * d_model)
        self.down_proj = nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = Attention(d_model, n_heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MLP(d_model)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %% GPT: no positions
# caught by: test_the_model_is_gpt2, test_a_token_knows_its_position
# says: The positions are never added: the model cannot tell the order of tokens except by its mask.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: positions from 1
# caught by: test_the_model_is_gpt2, test_a_token_knows_its_position
# says: The first token gets row 1 of the table: positions begin at 0.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(1, n + 1) % n_context)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: positions counted from the end
# caught by: test_the_model_is_gpt2, test_a_token_knows_its_position
# says: The last row of the table goes to the last token whatever the length is: position 0 is the first token.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n_context - n, n_context))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: positions added in every block
# caught by: test_the_model_is_gpt2
# says: The positions are added before every block: they are added once, at the bottom.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
            x = x + self.positions(torch.arange(n))
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: no last norm
# caught by: test_the_model_is_gpt2, test_the_last_norm_stands_before_the_read_out
# says: The last norm is created and never used.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(x, self.tokens.weight)


# %% GPT: the last norm before the blocks
# caught by: test_the_model_is_gpt2, test_the_last_norm_stands_before_the_read_out
# says: The last norm stands before the blocks: it belongs between the last block and the read-out.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.norm(self.tokens(ids) + self.positions(torch.arange(n)))
        for block in self.blocks:
            x = block(x)
        return F.linear(x, self.tokens.weight)


# %% GPT: a read-out of its own
# caught by: test_the_model_has_the_stated_parameters
# says: There is a read-out matrix of its own: GPT-2 reads out with the table of tokens.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


# %% GPT: tied, and stored twice
# caught by: test_the_model_has_the_stated_parameters
# says: The table is stored under a second name: use it in forward, and make no layer for it.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


# %% GPT: a scaled read-out
# caught by: test_the_model_is_gpt2, test_the_read_out_is_the_table_of_tokens
# says: The logits are divided by √d_model: GPT-2 does not scale its read-out.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight) / self.tokens.weight.shape[1] ** 0.5


# %% GPT: embeddings times √d_model
# caught by: test_the_model_is_gpt2
# says: The embeddings are multiplied by √d_model, as in the Transformer of 2017: GPT-2 does not.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) * self.tokens.embedding_dim**0.5 + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: probabilities
# caught by: test_the_model_is_gpt2, test_the_read_out_is_the_table_of_tokens
# says: The result is probabilities: it should be logits, before the softmax.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight).softmax(-1)


# %% GPT: only the last position
# caught by: test_the_model_is_gpt2, test_no_logit_depends_on_a_later_token
# says: Logits come from the last position only: every position predicts the token after it.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x[:, -1]), self.tokens.weight)


# %% GPT: detached table
# caught by: test_gradients_reach_every_parameter_of_the_model
# says: The read-out uses .data or a detached table, so nothing is learnt through it.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight.detach())


# %% GPT: token 0 is taken for padding
# caught by: test_gradients_reach_every_parameter_of_the_model
# says: padding_idx takes token 0 for padding: its vector is never learnt where it is read.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model, padding_idx=0)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: a seed of its own
# caught by: test_a_new_model_is_initialised_as_stated
# says: The model sets the seed itself: every new model is the same, and so is every random number after it.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: one block used again and again
# caught by: test_the_model_has_the_stated_parameters, test_the_model_is_gpt2
# says: All blocks are one and the same module: each layer needs one of its own.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads)] * n_layers)
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: blocks in a plain list
# caught by: test_the_model_has_the_stated_parameters
# says: The blocks are in a plain list, so the module does not know them: use nn.ModuleList.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = [Block(d_model, n_heads) for _ in range(n_layers)]
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: no error for a long text
# caught by: test_a_text_longer_than_the_context_is_refused
# says: A text that is too long is cut off silently: raise a ValueError with both numbers.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            ids, n = ids[:, -n_context:], n_context
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: an IndexError for a long text
# caught by: test_a_text_longer_than_the_context_is_refused
# says: A text that is too long ends in an IndexError from inside: raise a ValueError with both numbers.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: the last position refused
# caught by: test_a_text_longer_than_the_context_is_refused
# says: A text of exactly n_context tokens is refused: it fits.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n >= n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: PyTorch's initialisation
# caught by: test_a_new_model_is_initialised_as_stated
# says: The initialisation is PyTorch's own: embeddings of size 1, and uniform matrices.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: 0.02 everywhere
# caught by: test_a_new_model_is_initialised_as_stated
# says: What writes into the stream begins at 0.02 like the rest: it should be smaller, by √(2 · n_layers).
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: smaller by √n_layers
# caught by: test_a_new_model_is_initialised_as_stated
# says: What writes into the stream is divided by √n_layers: each block writes twice, so it is √(2 · n_layers).
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / n_layers**0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: biases not zeroed
# caught by: test_a_new_model_is_initialised_as_stated
# says: The biases of the linear layers keep PyTorch's random numbers: they should begin at 0.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% GPT: gains drawn at random
# caught by: test_a_new_model_is_initialised_as_stated
# says: The gains of the norms are drawn at random as well: they should begin at 1.
class GPT(nn.Module):
    def __init__(self, vocabulary, n_context, d_model, n_layers, n_heads):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d_model)
        self.positions = nn.Embedding(n_context, d_model)
        self.blocks = nn.ModuleList([Block(d_model, n_heads) for _ in range(n_layers)])
        self.norm = nn.LayerNorm(d_model)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (2 * n_layers) ** 0.5 if writes else 0.02)

    def forward(self, ids):
        n, n_context = ids.shape[1], self.positions.num_embeddings
        if n > n_context:
            raise ValueError(f"{n} tokens are more than the {n_context} positions of this model")
        x = self.tokens(ids) + self.positions(torch.arange(n))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight)


# %% from_gpt2: nothing is transposed
# caught by: test_the_fused_projection_is_cut_into_q_k_and_v, test_a_square_matrix_is_transposed_too, test_the_feed_forward_weights_are_transposed, test_the_converted_weights_give_the_same_logits
# says: Nothing is transposed: Conv1D stores its weight as (in, out), nn.Linear as (out, in).
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share]
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"]
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"]
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"]
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: the square matrix is not transposed
# caught by: test_a_square_matrix_is_transposed_too, test_the_converted_weights_give_the_same_logits
# says: attn.c_proj is not transposed. It is square, so it fits both ways round.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"]
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: q, k and v are not transposed
# caught by: test_the_fused_projection_is_cut_into_q_k_and_v, test_the_converted_weights_give_the_same_logits
# says: q, k and v are cut out rightly and not transposed. They are square, so they fit both ways round.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share]
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: the fused matrix is cut along its rows
# caught by: test_the_fused_projection_is_cut_into_q_k_and_v
# says: The fused matrix is cut along its rows: q, k and v lie side by side along its 3 · d_model columns.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight.reshape(3 * d_model, d_model)[share]
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: k, q, v
# caught by: test_the_fused_projection_is_cut_into_q_k_and_v, test_the_converted_weights_give_the_same_logits
# says: q and k are exchanged: c_attn holds q, then k, then v.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("kqv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: q, k and v mixed head by head
# caught by: test_the_fused_projection_is_cut_into_q_k_and_v, test_the_converted_weights_give_the_same_logits
# says: Every third column goes to q: that is not GPT-2's order, which has all of q first, then k, then v.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j, None, 3)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: up and down exchanged
# caught by: test_the_feed_forward_weights_are_transposed
# says: c_fc goes to down_proj and c_proj to up_proj: c_fc is the way up.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: the norms exchanged
# caught by: test_tables_and_norms_are_renamed, test_the_converted_weights_give_the_same_logits
# says: ln_1 and ln_2 are exchanged: ln_1 stands before attention.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_2.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_1.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: lm_head is kept
# caught by: test_the_names_are_those_of_the_course
# says: lm_head.weight is kept: it is the table of tokens, which GPT stores once.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    found["lm_head.weight"] = state["lm_head.weight"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: one digit for the number of a block
# caught by: test_twelve_blocks_keep_their_order
# says: The number of a block is read as one digit: block 11 is lost.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while i < 10 and f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: biases left out
# caught by: test_the_names_are_those_of_the_course
# says: The biases of the linear layers are left out.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        i += 1
    return found


# %% from_gpt2: the fused bias is dropped with the masks
# caught by: test_the_names_are_those_of_the_course, test_the_fused_projection_is_cut_into_q_k_and_v
# says: c_attn.bias is dropped with the masks: its name ends in attn.bias too, and it is a parameter.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: the caller's dict is emptied
# caught by: test_the_state_dict_that_came_in_stays
# says: pop takes the tensors out of the caller's dict: read them, and leave it as it is.
def from_gpt2(state):
    found = {"tokens.weight": state.pop("transformer.wte.weight"), "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: old masks are deleted
# caught by: test_the_state_dict_that_came_in_stays
# says: The old masks are deleted in the caller's dict: skip them, and leave it as it is.
def from_gpt2(state):
    for name in [name for name in state if name.endswith((".attn.bias", ".attn.masked_bias"))]:
        del state[name]
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: lm_head has to be there
# caught by: test_the_names_are_those_of_the_course
# says: The table is read from lm_head.weight, which is not in every file; transformer.wte.weight is.
def from_gpt2(state):
    found = {"tokens.weight": state["lm_head.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return found


# %% from_gpt2: everything becomes float32
# caught by: test_the_state_dict_that_came_in_stays
# says: The tensors become float32: each should keep its dtype.
def from_gpt2(state):
    found = {"tokens.weight": state["transformer.wte.weight"], "positions.weight": state["transformer.wpe.weight"]}
    found["norm.weight"], found["norm.bias"] = state["transformer.ln_f.weight"], state["transformer.ln_f.bias"]
    i = 0
    while f"transformer.h.{i}.ln_1.weight" in state:
        theirs, ours = f"transformer.h.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            found[f"{ours}norm1.{part}"] = state[f"{theirs}ln_1.{part}"]
            found[f"{ours}norm2.{part}"] = state[f"{theirs}ln_2.{part}"]
        weight, bias = state[f"{theirs}attn.c_attn.weight"], state[f"{theirs}attn.c_attn.bias"]
        d_model = len(weight)
        for j, letter in enumerate("qkv"):
            share = slice(j * d_model, (j + 1) * d_model)
            found[f"{ours}attention.{letter}_proj.weight"] = weight[:, share].T
            found[f"{ours}attention.{letter}_proj.bias"] = bias[share]
        found[f"{ours}attention.o_proj.weight"] = state[f"{theirs}attn.c_proj.weight"].T
        found[f"{ours}attention.o_proj.bias"] = state[f"{theirs}attn.c_proj.bias"]
        found[f"{ours}mlp.up_proj.weight"] = state[f"{theirs}mlp.c_fc.weight"].T
        found[f"{ours}mlp.up_proj.bias"] = state[f"{theirs}mlp.c_fc.bias"]
        found[f"{ours}mlp.down_proj.weight"] = state[f"{theirs}mlp.c_proj.weight"].T
        found[f"{ours}mlp.down_proj.bias"] = state[f"{theirs}mlp.c_proj.bias"]
        i += 1
    return {name: value.float() for name, value in found.items()}


# %% from_gpt2: masks are taken for biases
# caught by: test_the_converted_weights_give_the_same_logits
# says: The masks of older versions (attn.bias, attn.masked_bias) are kept, or taken for a bias: they are no parameters.
def from_gpt2(state):
    short = {
        "wte": "tokens",
        "wpe": "positions",
        "ln_f": "norm",
        "h": "blocks",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "attn": "attention",
        "c_fc": "up_proj",
    }
    found = {}
    for name, value in state.items():
        if name == "lm_head.weight":
            continue
        parts = name.split(".")[1:]
        if "c_proj" in parts:
            parts[parts.index("c_proj")] = "o_proj" if "attn" in parts else "down_proj"
            value = value.T if parts[-1] == "weight" else value
        if "c_fc" in parts and parts[-1] == "weight":
            value = value.T
        if "c_attn" in parts:
            value = value.T if parts[-1] == "weight" else value
            for letter, third in zip("qkv", value.chunk(3)):
                found[f"blocks.{parts[1]}.attention.{letter}_proj.{parts[-1]}"] = third
        else:
            found[".".join(short.get(part, part) for part in parts)] = value
    return found


# %% learning_rate: a dead first step
# caught by: test_the_first_step_is_not_wasted, test_warm_up_climbs_in_equal_strides, test_every_step_has_its_rate
# says: Step 0 has a rate of 0, so the first batch changes nothing.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * step / warmup
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


# %% learning_rate: the peak one step early
# caught by: test_warm_up_climbs_in_equal_strides, test_every_step_has_its_rate
# says: The peak is reached at step `warmup` − 1, one step early.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


# %% learning_rate: no warm-up
# caught by: test_warm_up_climbs_in_equal_strides, test_the_first_step_is_not_wasted, test_every_step_has_its_rate
# says: There is no warm-up: the rate begins at the peak.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


# %% learning_rate: the cosine ends at zero
# caught by: test_the_curve_falls_from_peak_to_final, test_every_step_has_its_rate
# says: The cosine falls to 0 and not to `final`.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return 0.5 * peak * (1 + math.cos(math.pi * progress))


# %% learning_rate: final on top of the peak
# caught by: test_the_curve_falls_from_peak_to_final, test_every_step_has_its_rate
# says: The cosine begins above the peak: it has to span peak − final.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * peak * (1 + math.cos(math.pi * progress))


# %% learning_rate: the cosine counts from step 0
# caught by: test_the_curve_falls_from_peak_to_final, test_every_step_has_its_rate
# says: The cosine counts from step 0 and not from the end of the warm-up, so that it does not begin at the peak.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = step / steps
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


# %% learning_rate: a whole cosine
# caught by: test_the_curve_falls_from_peak_to_final, test_every_step_has_its_rate
# says: This is a whole cosine, which is at its lowest in the middle: half a cosine ends at the bottom.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(2 * math.pi * progress))


# %% learning_rate: a quarter of a cosine
# caught by: test_the_curve_falls_from_peak_to_final, test_every_step_has_its_rate
# says: This is a quarter of a cosine, which falls steeply into its end: half a cosine is flat at both ends.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + (peak - final) * math.cos(math.pi * progress / 2)


# %% learning_rate: a straight line down
# caught by: test_every_step_has_its_rate
# says: The rate falls along a straight line: it should be half a cosine.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + (peak - final) * (1 - progress)


# %% learning_rate: final one step early
# caught by: test_the_curve_falls_from_peak_to_final, test_every_step_has_its_rate
# says: `final` is reached at step `steps` − 1: it should be at step `steps`.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / max(steps - 1 - warmup, 1)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


# %% learning_rate: it climbs again
# caught by: test_after_the_last_step_it_stays_final
# says: After step `steps` the cosine climbs again: the rate should stay `final`.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


# %% learning_rate: zero after the end
# caught by: test_after_the_last_step_it_stays_final
# says: From step `steps` on the rate is 0: it should stay `final`.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return 0.0
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


# %% learning_rate: final as a fraction
# caught by: test_the_curve_falls_from_peak_to_final, test_every_step_has_its_rate
# says: `final` is taken for a fraction of the peak: it is a rate.
def learning_rate(step, *, peak, warmup, steps, final):
    final = final * peak
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


# %% learning_rate: a tensor
# caught by: test_the_rate_is_a_float
# says: The rate is a tensor where the cosine is: it should be a Python float.
def learning_rate(step, *, peak, warmup, steps, final):
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (peak - final) * (1 + torch.cos(torch.tensor(math.pi * progress, dtype=torch.float64)))


# %% accumulate: a mean of means
# caught by: test_every_token_weighs_the_same, test_targets_that_do_not_count_have_no_weight, test_the_loss_is_the_mean_over_all_tokens
# says: This is the mean of the micro-batches' means: a token in a small micro-batch weighs more than one in a large.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) / len(batches)
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: not divided
# caught by: test_equal_micro_batches_give_the_whole_batch, test_every_token_weighs_the_same
# says: The losses of the micro-batches are added and never divided: with four of them the step is four times as long.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: a sum
# caught by: test_equal_micro_batches_give_the_whole_batch, test_every_token_weighs_the_same
# says: This is the gradient of the sum over all tokens: divide by how many there are.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: padding counts in the divisor
# caught by: test_targets_that_do_not_count_have_no_weight
# says: Targets of −100 are counted in the number that divides: only those that count belong there.
def accumulate(model, batches):
    total = sum(targets.numel() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: weighted by sequences
# caught by: test_every_token_weighs_the_same
# says: Each micro-batch weighs by its number of sequences: it is the number of tokens that matters.
def accumulate(model, batches):
    total = sum(len(targets) for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) * len(ids) / total
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: NaN where nothing counts
# caught by: test_targets_that_do_not_count_have_no_weight
# says: A micro-batch in which no target counts gives NaN: its mean is 0/0.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten()) * (targets != -100).sum() / total
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: gradients set to zero each time
# caught by: test_equal_micro_batches_give_the_whole_batch, test_every_token_weighs_the_same
# says: The gradients are set to zero before each micro-batch, so only the last one counts.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        model.zero_grad()
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: gradients set to zero at the start
# caught by: test_gradients_are_added_to_those_that_are_there
# says: The gradients that were there are set to zero: accumulate should add to them.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    model.zero_grad()
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: one backward at the end
# caught by: test_one_micro_batch_at_a_time_is_held
# says: The losses are added up and one backward pass comes at the end: all graphs are held until then, and nothing is saved.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        mean = mean + loss
    mean.backward()
    return mean.item()


# %% accumulate: all in one row
# caught by: test_one_micro_batch_at_a_time_is_held
# says: All micro-batches are laid end to end and go through the model at once: that is what does not fit into memory.
def accumulate(model, batches):
    ids = torch.cat([ids.flatten() for ids, _ in batches])[None]
    targets = torch.cat([targets.flatten() for _, targets in batches])
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets)
    loss.backward()
    return loss.item()


# %% accumulate: a tensor is returned
# caught by: test_the_loss_is_the_mean_over_all_tokens
# says: The loss that is returned is a tensor: it should be a float.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.detach()
    return mean


# %% accumulate: the last loss is returned
# caught by: test_the_loss_is_the_mean_over_all_tokens
# says: The loss of the last micro-batch is returned, not the mean over all.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        loss.backward()
        mean = loss.item()
    return mean


# %% accumulate: the mean of means is returned
# caught by: test_the_loss_is_the_mean_over_all_tokens
# says: The gradients are right; the loss that is returned is a mean of means.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        loss.backward()
        mean += F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() / len(batches)
    return mean


# %% accumulate: the model is called twice
# caught by: test_one_micro_batch_at_a_time_is_held
# says: The model is called more than once for a micro-batch: that is twice the work.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        model(ids)
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: a step is taken
# caught by: test_gradients_are_added_to_those_that_are_there
# says: The weights are changed: accumulate only adds gradients.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    return mean


# %% accumulate: view of a slice
# caught by: test_every_token_weighs_the_same
# says: view(-1) needs numbers that lie side by side, and targets are often a slice of a text: use reshape or flatten.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.view(-1), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


# %% accumulate: targets shifted again
# caught by: test_every_token_weighs_the_same, test_the_loss_is_the_mean_over_all_tokens
# says: Logits and targets are shifted against each other: the targets here are shifted already.
def accumulate(model, batches):
    total = sum((targets != -100).sum().item() for _, targets in batches)
    mean = 0.0
    for ids, targets in batches:
        logits = model(ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="sum") / total
        loss.backward()
        mean += loss.item()
    return mean


# %% Mended: the patient as it was
# caught by: test_the_patient_is_in_health, test_the_mended_block_keeps_its_names
# says: This is the patient as it was: it is still ill. With one head it agrees with PyTorch, with two it does not.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (d_head, self.n_heads)).movedim(-1, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, -1).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: only the cut is mended
# caught by: test_the_patient_is_in_health
# says: The heads are cut rightly now; what they bring home is still put together the old way.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).movedim(2, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, -1).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: only the merge is mended
# caught by: test_the_patient_is_in_health
# says: The heads' results are put together rightly now; q, k and v are still cut the old way.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (d_head, self.n_heads)).movedim(-1, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, 2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: another root
# caught by: test_the_patient_is_in_health
# says: The scale was right: scores are divided by the root of the width of one head. The fault is still there.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (d_head, self.n_heads)).movedim(-1, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(x.shape[2])
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, -1).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: the norms moved to the front
# caught by: test_the_patient_is_in_health, test_what_was_healthy_still_is
# says: The norms stand before the sub-layers now: in this block they belong after the sums, and were right.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).movedim(2, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, 2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = x + self.self_attn(self.norm1(x))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x)), approximate="tanh"))


# %% Mended: reshaped straight
# caught by: test_the_patient_is_in_health, test_the_mended_block_never_looks_ahead
# says: The heads are cut by reshaping straight to (batch, n_heads, n, d_head), which mixes positions.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.reshape(len(x), self.n_heads, n, d_head) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).reshape(x.shape))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: no mask any more
# caught by: test_the_patient_is_in_health, test_the_mended_block_never_looks_ahead
# says: The mask is gone: the block looks ahead now.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).movedim(2, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.softmax(-1)
        return self.out_proj((weights @ v).movedim(1, 2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: a single head
# caught by: test_the_patient_is_in_health
# says: There is one head now, whatever n_heads is: that hides the fault and does not mend it.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = 1
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).movedim(2, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, 2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: names changed
# caught by: test_the_mended_block_keeps_its_names
# says: The state dict has other names: PyTorch's weights no longer fit.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).movedim(2, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, 2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.attention = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x), approximate="tanh")))


# %% Mended: dropout
# caught by: test_what_was_healthy_still_is
# says: In training numbers are dropped at random: the patient has no dropout, and so has the block in health.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).movedim(2, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, 2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        hidden = self.linear2(F.gelu(self.linear1(x), approximate="tanh"))
        return self.norm2(x + F.dropout(hidden, 0.1, self.training))


# %% Mended: the exact GELU
# caught by: test_the_patient_is_in_health
# says: The activation was right: GELU in its tanh form.
class SelfAttention(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d_model, d_model) / math.sqrt(d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x):
        n, d_head = x.shape[1], x.shape[2] // self.n_heads
        fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (part.unflatten(-1, (self.n_heads, d_head)).movedim(2, 1) for part in fused.chunk(3, -1))
        scores = q @ k.mT / math.sqrt(d_head)
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(-1)
        return self.out_proj((weights @ v).movedim(1, 2).flatten(-2))


class Mended(nn.Module):
    def __init__(self, d_model, n_heads):
        super().__init__()
        self.self_attn = SelfAttention(d_model, n_heads)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, 4 * d_model)
        self.linear2 = nn.Linear(4 * d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model)

    def forward(self, x):
        x = self.norm1(x + self.self_attn(x))
        return self.norm2(x + self.linear2(F.gelu(self.linear1(x))))
