# story: Writes frames that are none of the protocol's: a verdict, a report in JSON, a pickle, another worker's end, an
#   answer to a question of long ago, a frame without an end.
# says: not asked|something else than a reply|ended without an answer|could not cross
# %%
import json
import os
import stat
import struct
import wire

channel = next(fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode))
verdict = json.dumps({"student": "me", "points": 20, "max_points": 20, "outcome": "passed"}).encode()
frames = iter([
    struct.pack("<I", len(verdict)) + verdict,
    wire.frame(wire.Answer(0, True)),
    wire.frame(wire.Exited(0)),
    struct.pack("<I", 40) + b"cos\nsystem\n(S'touch /tmp/owned'\ntR." + b" " * 4,
    b"\xff\xff\xff\xff",
] * 9)
# %% causal_mask
def causal_mask(n):
    os.write(channel, next(frames))
    return torch.ones(n, n, dtype=torch.bool).triu()
# %% attention
def attention(q, k, v, mask=None):
    os.write(channel, next(frames))
    return v
# %% split_heads
def split_heads(x, n_heads):
    os.write(channel, next(frames))
    return x
