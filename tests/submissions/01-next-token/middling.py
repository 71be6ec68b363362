# %% train_bpe
def train_bpe(text: str, n_merges: int) -> list[tuple[int, int]]:
    words = Counter(tuple(p.encode()) for p in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = Counter()
        for w, c in words.items():
            for pair in zip(w, w[1:]):
                counts[pair] += c
        # once is not a pattern
        counts = {pair: c for pair, c in counts.items() if c > 1}
        if not counts:
            return merges
        best = sorted(counts, key=lambda pair: (-counts[pair], pair))[0]
        merges.append(best)
        new = Counter()
        for w, c in words.items():
            out = []
            i = 0
            while i < len(w):
                if w[i : i + 2] == best:
                    out.append(255 + len(merges))
                    i += 2
                else:
                    out.append(w[i])
                    i += 1
            new[tuple(out)] += c
        words = new
    return merges


# %% encode
def encode(text: str, merges: list[tuple[int, int]]) -> list[int]:
    result = []
    for piece in pieces(text):
        ids = list(piece.encode())
        while True:
            todo = [merges.index((a, b)) for a, b in zip(ids, ids[1:]) if (a, b) in merges]
            if todo == []:
                break
            first = min(todo)
            for i in range(len(ids) - 1):
                if (ids[i], ids[i + 1]) == merges[first]:
                    ids[i : i + 2] = [first + 256]
                    break
        result += ids
    return result


# %% decode
def decode(ids: list[int], merges: list[tuple[int, int]]) -> str:
    table = {i: bytes([i]) for i in range(256)}
    for i, (a, b) in enumerate(merges):
        table[256 + i] = table[a] + table[b]
    text = ""
    for i in ids:
        if i not in table:
            raise ValueError("unknown id " + str(i))
        text += table[i].decode(errors="replace")
    return text


# %% next_token_loss
def next_token_loss(logits, ids, n_bytes):
    """mean loss, and loss per byte"""
    x = logits[:, :-1].reshape(-1, logits.shape[-1])
    y = ids[:, 1:].reshape(-1)
    loss = F.cross_entropy(x, y, ignore_index=PAD, reduction="sum")
    return loss / (y != PAD).sum(), loss / n_bytes
