# Right answers written differently. The set-up cell of the chapter runs before each of them.


# %% train_bpe: lists, and a helper that merges
def merged(ids, pair, new):
    out = []
    for i in ids:
        if out and out[-1] == pair[0] and i == pair[1]:
            out[-1] = new
        else:
            out.append(i)
    return out


def train_bpe(text, n_merges):
    words = [list(piece.encode("utf-8")) for piece in pieces(text)]
    merges = []
    for new in range(256, 256 + n_merges):
        counts = Counter(pair for word in words for pair in zip(word, word[1:]))
        if len(counts) == 0:
            return merges
        most = max(counts.values())
        pair = sorted(p for p, count in counts.items() if count == most)[0]
        merges.append(pair)
        words = [merged(word, pair, new) for word in words]
    return merges


# %% train_bpe: a max over negated ids
def train_bpe(text: str, n_merges: int):
    corpus = {}
    for piece in pieces(text):
        key = tuple(bytearray(piece, "utf8"))
        corpus[key] = corpus.get(key, 0) + 1
    merges = []
    for step in range(n_merges):
        stats = {}
        for word, freq in corpus.items():
            for left, right in zip(word[:-1], word[1:]):
                stats[left, right] = stats.get((left, right), 0) + freq
        if not stats:
            break
        best = max(stats, key=lambda pair: (stats[pair], -pair[0], -pair[1]))
        merges += [best]
        after = {}
        for word, freq in corpus.items():
            out, i = [], 0
            while i < len(word):
                if i + 1 < len(word) and (word[i], word[i + 1]) == best:
                    out.append(256 + step)
                    i = i + 2
                else:
                    out.append(word[i])
                    i = i + 1
            after[tuple(out)] = after.get(tuple(out), 0) + freq
        corpus = after
    return merges


# %% train_bpe: tokens as characters, merged by str.replace
def train_bpe(text, n_merges):
    words = Counter("".join(chr(byte) for byte in piece.encode()) for piece in pieces(text))
    merges = []
    while len(merges) < n_merges:
        counts = defaultdict_of(words)
        if not counts:
            break
        left, right = min(counts.items(), key=lambda item: (-item[1], item[0]))[0]
        new = chr(256 + len(merges))
        again = Counter()
        for word, times in words.items():
            again[word.replace(left + right, new)] += times
        words = again
        merges.append((ord(left), ord(right)))
    return merges


def defaultdict_of(words):
    counts = {}
    for word, times in words.items():
        for a, b in zip(word, word[1:]):
            counts[a, b] = counts.get((a, b), 0) + times
    return counts


# %% train_bpe: recursive, one merge after another
def train_bpe(text, n_merges, words=None, new=256):
    if words is None:
        words = Counter(tuple(piece.encode()) for piece in pieces(text))
    counts = Counter()
    for word, times in words.items():
        counts.update({pair: 0 for pair in pairwise(word)})
        for pair in pairwise(word):
            counts[pair] += times
    if n_merges == 0 or not counts:
        return []
    best = min(counts, key=lambda pair: (-counts[pair], pair))

    def join(word):
        if len(word) < 2:
            return word
        if word[:2] == best:
            return (new, *join(word[2:]))
        return (word[0], *join(word[1:]))

    after = Counter()
    for word, times in words.items():
        after[join(word)] += times
    return [best, *train_bpe(text, n_merges - 1, after, new + 1)]


# %% encode: the merges replayed one after another
def encode(text, merges):
    out = []
    for piece in pieces(text):
        ids = list(piece.encode())
        for new, pair in enumerate(merges, start=256):
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == tuple(pair):
                    ids[i : i + 2] = [new]
                i += 1
        out.extend(ids)
    return out


# %% encode: str.replace on characters
def encode(text, merges):
    ids = []
    for piece in pieces(text):
        word = "".join(map(chr, piece.encode("utf-8")))
        for i, (left, right) in enumerate(merges):
            word = word.replace(chr(left) + chr(right), chr(256 + i))
        ids += [ord(character) for character in word]
    return ids


# %% encode: ranks in a dictionary, each piece once
def encode(text, merges):
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    known = {}

    def cut(piece):
        ids = list(piece.encode())
        while len(ids) > 1:
            rank, at = min((ranks.get((a, b), math.inf), i) for i, (a, b) in enumerate(zip(ids, ids[1:])))
            if rank == math.inf:
                break
            ids = ids[:at] + [256 + rank] + ids[at + 2 :]
        return ids

    found = []
    for piece in pieces(text):
        if piece not in known:
            known[piece] = cut(piece)
        found.extend(known[piece])
    return found


# %% encode: list.index on the merges
def encode(text, merges):
    result = []
    for piece in pieces(text):
        ids = [byte for byte in piece.encode()]
        while True:
            candidates = [merges.index(pair) for pair in zip(ids, ids[1:]) if pair in merges]
            if not candidates:
                break
            new = min(candidates)
            fresh, skip = [], False
            for a, b in zip(ids, ids[1:] + [None]):
                if skip:
                    skip = False
                elif (a, b) == merges[new]:
                    fresh.append(new + 256)
                    skip = True
                else:
                    fresh.append(a)
            ids = fresh
        result.extend(ids)
    return result


# %% encode: the bytes of two neighbours looked up, as tiktoken does it
def encode(text, merges):
    vocabulary = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    ranks = {token: i for i, token in enumerate(vocabulary)}
    ids = []
    for piece in pieces(text):
        parts = [bytes([byte]) for byte in piece.encode("utf-8")]
        while True:
            best = None
            for i in range(len(parts) - 1):
                rank = ranks.get(parts[i] + parts[i + 1])
                if rank is not None and (best is None or rank < best[0]):
                    best = (rank, i)
            if best is None:
                break
            at = best[1]
            parts = parts[:at] + [parts[at] + parts[at + 1]] + parts[at + 2 :]
        ids.extend(ranks[part] for part in parts)
    return ids


# %% decode: taken apart by recursion
def decode(ids, merges):
    def unfold(i):
        if i < 0 or i >= 256 + len(merges):
            raise ValueError(f"{i} is no id of this vocabulary")
        if i < 256:
            return bytes((i,))
        left, right = merges[i - 256]
        return unfold(left) + unfold(right)

    return b"".join(map(unfold, ids)).decode("utf-8", "replace")


# %% decode: a dictionary of bytes
def decode(ids, merges):
    table = {byte: bytes([byte]) for byte in range(256)}
    for new, (a, b) in enumerate(merges, 256):
        table[new] = table[a] + table[b]
    data = bytearray()
    for i in ids:
        if i not in table:
            raise ValueError(f"Unknown id: {i}")
        data += table[i]
    return str(bytes(data), "utf-8", errors="replace")


# %% decode: a stack
def decode(ids, merges):
    stack, out = list(reversed(ids)), []
    while stack:
        i = stack.pop()
        if 0 <= i <= 255:
            out.append(i)
        elif 256 <= i < 256 + len(merges):
            left, right = merges[i - 256]
            stack += [right, left]
        else:
            raise ValueError(f"the id {i} does not exist")
    return bytes(out).decode(errors="replace")


# %% decode: an incremental decoder
def decode(ids, merges):
    import codecs

    vocabulary = [bytes([i]) for i in range(256)]
    for pair in merges:
        vocabulary.append(b"".join(vocabulary[part] for part in pair))
    reader = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = ""
    for i in ids:
        if i < 0:
            raise ValueError(f"ids start at 0, so {i} cannot be one")
        try:
            text += reader.decode(vocabulary[i])
        except IndexError:
            raise ValueError(f"id {i} is beyond the last one, {len(vocabulary) - 1}") from None
    return text + reader.decode(b"", final=True)


# %% next_token_loss: log-softmax and gather
def next_token_loss(logits, ids, n_bytes):
    log_p = F.log_softmax(logits[:, :-1], dim=-1)
    targets = ids[:, 1:]
    real = targets != PAD
    found = log_p.gather(-1, torch.where(real, targets, 0)[..., None])[..., 0]
    nats = -torch.where(real, found, 0).sum()
    return nats / real.sum(), nats / math.log(2) / n_bytes


# %% next_token_loss: the sum by PyTorch, divided twice
def next_token_loss(logits, ids, n_bytes):
    vocab = logits.size(-1)
    scores = logits[:, :-1, :].reshape(-1, vocab)
    targets = ids[:, 1:].reshape(-1)
    total = F.cross_entropy(scores, targets, ignore_index=PAD, reduction="sum")
    return total / int((targets != PAD).sum()), total / (n_bytes * math.log(2.0))


# %% next_token_loss: log-sum-exp, only where something is predicted
def next_token_loss(logits, ids, n_bytes):
    where = ids[:, 1:] != PAD
    rows, targets = logits[:, :-1][where], ids[:, 1:][where]
    losses = torch.logsumexp(rows, -1) - rows[torch.arange(len(targets)), targets]
    return losses.mean(), losses.sum() * math.log2(math.e) / n_bytes


# %% next_token_loss: in float32 or wider, then cast back
def next_token_loss(logits, ids, n_bytes):
    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(wide[:, :-1].transpose(1, 2), ids[:, 1:], ignore_index=-100, reduction="none")
    n_tokens = (ids[:, 1:] >= 0).sum()
    nats = losses.sum() / n_tokens
    bits = losses.div(math.log(2)).sum() / n_bytes
    return nats.to(logits.dtype), bits.to(logits.dtype)


# %% next_token_loss: targets moved instead of logits cut
def next_token_loss(logits, ids, n_bytes):
    targets = torch.full_like(ids, PAD)
    targets[:, :-1] = ids[:, 1:]
    nats = F.nll_loss(logits.log_softmax(-1).flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum")
    return nats / targets.ne(PAD).sum(), nats / n_bytes / math.log(2)


# %% next_token_loss: sequence by sequence
def next_token_loss(logits, ids, n_bytes):
    losses = []
    for row, sequence in zip(logits, ids):
        length = int((sequence != PAD).sum())
        if length > 1:
            losses.append(F.cross_entropy(row[: length - 1], sequence[1:length], reduction="none"))
    losses = torch.cat(losses)
    return losses.mean(), losses.sum() / torch.tensor(2.0).log().item() / n_bytes


# %% next_token_distribution: masks of −inf, as transformers does it
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    scores = logits / temperature
    vocab = scores.size(-1)
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    if top_k is not None:
        beyond = torch.zeros_like(scores, dtype=torch.bool)
        beyond.scatter_(-1, order[..., min(top_k, vocab) :], True)
        scores = scores.masked_fill(beyond, -torch.inf)
    if top_p is not None and top_p < 1.0:
        sorted_p = scores.softmax(-1).gather(-1, order)
        remove = sorted_p.cumsum(-1) >= top_p
        remove = torch.cat([torch.zeros_like(remove[..., :1]), remove[..., :-1]], -1)
        scores = scores.masked_fill(torch.zeros_like(remove).scatter(-1, order, remove), -torch.inf)
    return torch.softmax(scores, -1)


# %% next_token_distribution: row by row, in Python
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    vocab = logits.shape[-1]
    result = []
    for row in logits.reshape(-1, vocab).double().tolist():
        order = sorted(range(vocab), key=lambda i: (-row[i], i))
        if temperature == 0:
            chosen = order[:1]
            weights = [1.0]
        else:
            chosen = order[:top_k]
            weights = [math.exp((row[i] - row[order[0]]) / temperature) for i in chosen]
        if top_p is not None and top_p < 1:
            share, n = 0.0, 0
            while share < top_p * sum(weights) and n < len(weights):
                share += weights[n]
                n += 1
            chosen, weights = chosen[:n], weights[:n]
        p = [0.0] * vocab
        for i, weight in zip(chosen, weights):
            p[i] = weight / sum(weights)
        result.append(p)
    return torch.tensor(result, dtype=logits.dtype).reshape(logits.shape)


# %% next_token_distribution: ranks instead of sorted values
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    rank = logits.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    if temperature == 0:
        return (rank == 0).to(logits.dtype)
    p = (logits / temperature).softmax(-1)
    if top_k:
        p = torch.where(rank < top_k, p, 0)
    p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p != 1:
        ahead = (p[..., None, :] * (rank[..., None, :] < rank[..., :, None])).sum(-1)
        p = torch.where((ahead < top_p) | (rank == 0), p, 0)
        p = p / p.sum(-1, keepdim=True)
    return p


# %% next_token_distribution: numpy
def next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None):
    import numpy as np

    x = logits.detach().double().numpy()
    order = np.argsort(-x, axis=-1, kind="stable")
    x = np.take_along_axis(x, order, -1)
    if temperature == 0:
        p = np.zeros_like(x)
        p[..., 0] = 1
    else:
        p = np.exp((x - x[..., :1]) / temperature)
        p[..., top_k or x.shape[-1] :] = 0
        p /= p.sum(-1, keepdims=True)
        if top_p is not None and top_p < 1:
            keep = np.cumsum(p, -1) < top_p
            keep = np.concatenate([np.ones_like(keep[..., :1]), keep[..., :-1]], -1)
            p = np.where(keep, p, 0)
            p /= p.sum(-1, keepdims=True)
    out = np.zeros_like(p)
    np.put_along_axis(out, order, p, -1)
    return torch.from_numpy(out).to(logits.dtype)
