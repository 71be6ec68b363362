# story: Answers that no wire can carry: a list that holds itself, a hundred thousand items, 64 MB, sizes of 2**40, sparse
#   and meta tensors, integers of a million digits, text that is no Unicode.
# says: does not cross|larger than|could not cross
# %%
loop = []
loop.append(loop)
refused = iter([loop, b"x" * (40 << 20), torch.empty(0, 2**40), torch.empty(2**20, 2**20, device="meta"), torch.eye(3).to_sparse()])
others = iter([10**1_000_000, "\ud800", torch.ones(1).expand(2**12, 2**12), {(i, i): loop for i in range(9)}, {1.5: 2, None: 3},
               float("nan"), 1e400, -0.0, ..., slice(1, 2), {1, 2}, b"\0", torch.float8_e5m2, torch.device("meta"), [0] * 200_000] * 2)
# %% causal_mask
def causal_mask(n):
    return next(refused)
# %% attention
def attention(*args, **kwargs):
    return next(others)
# %% split_heads
def split_heads(*args):
    return [0] * 200_000
