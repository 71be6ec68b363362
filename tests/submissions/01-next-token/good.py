# %% helpers that I use below
def join_pair(ids, pair, new_id):
    """Replace each non-overlapping occurrence of the pair, left to right."""
    joined = []
    skip = False
    for position, current in enumerate(ids):
        if skip:
            skip = False
            continue
        following = ids[position + 1] if position + 1 < len(ids) else None
        if (current, following) == pair:
            joined.append(new_id)
            skip = True
        else:
            joined.append(current)
    return joined


def byte_table(merges):
    """What every id stands for."""
    table = {i: bytes([i]) for i in range(256)}
    for i, (a, b) in enumerate(merges):
        table[256 + i] = table[a] + table[b]
    return table


# %% train_bpe
def train_bpe(text: str, n_merges: int) -> list[tuple[int, int]]:
    """Learn up to n_merges merges of byte-level byte-pair encoding; merge i makes the id 256 + i.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), algorithm 1; on bytes as in Radford et al. 2019, section 2.2.
    """
    # each different piece once, with how often it occurs
    how_often = Counter(pieces(text))
    split = {piece: list(piece.encode("utf-8")) for piece in how_often}
    merges = []
    for i in range(n_merges):
        pair_counts = Counter()
        for piece, ids in split.items():
            for left, right in zip(ids, ids[1:]):
                pair_counts[(left, right)] += how_often[piece]
        if not pair_counts:
            break
        most = max(pair_counts.values())
        winner = min(pair for pair, count in pair_counts.items() if count == most)  # ties: the smaller pair
        merges.append(winner)
        for piece in split:
            split[piece] = join_pair(split[piece], winner, 256 + i)
    return merges


# %% encode
def encode(text: str, merges: list[tuple[int, int]]) -> list[int]:
    """Cut a text into tokens: in each piece, the earliest merge in the list first, from left to right.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), section 3.2.
    """
    tokens = []
    for piece in pieces(text):
        ids = list(piece.encode("utf-8"))
        # replaying all merges in order does the earliest one first
        for i, pair in enumerate(merges):
            if len(ids) < 2:
                break
            ids = join_pair(ids, pair, 256 + i)
        tokens.extend(ids)
    return tokens


# %% decode
def decode(ids: list[int], merges: list[tuple[int, int]]) -> str:
    """The text that the ids stand for; what is no valid UTF-8 becomes U+FFFD.

    Raises ValueError for an id that is not in the vocabulary.
    """
    table = byte_table(merges)
    data = b""
    for i in ids:
        if i not in table:
            raise ValueError(f"id {i} is not in the vocabulary of {len(table)} tokens")
        data += table[i]
    return data.decode("utf-8", errors="replace")


# %% next_token_loss
def next_token_loss(
    logits: Float[Tensor, "batch n vocab"], ids: Int[Tensor, "batch n"], n_bytes: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean loss in nats a token, and the whole loss in bits a byte, of predicting each token from those before."""
    predictions = logits[:, :-1, :]
    targets = ids[:, 1:]
    log_probs = torch.log_softmax(predictions, dim=-1)
    keep = targets != PAD
    safe = torch.where(keep, targets, torch.zeros_like(targets))
    picked = torch.gather(log_probs, 2, safe.unsqueeze(-1)).squeeze(-1)
    total = -picked[keep].sum()
    return total / keep.sum(), total / (math.log(2) * n_bytes)


# %% next_token_distribution
def next_token_distribution(
    logits: Float[Tensor, "... vocab"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "... vocab"]:
    """Probabilities of the next token: temperature, then top-k, then top-p, and what is left sums to 1.

    Source: Holtzman et al. 2020 (arXiv 1904.09751), section 3.
    """
    vocab = logits.shape[-1]
    order = torch.argsort(logits, dim=-1, descending=True, stable=True)
    rank = torch.argsort(order, dim=-1)  # 0 is the most probable
    if temperature == 0:
        return (rank == 0).to(logits.dtype)
    scores = logits / temperature
    if top_k is not None and top_k < vocab:
        scores = torch.where(rank < top_k, scores, float("-inf"))
    probs = torch.softmax(scores, dim=-1)
    if top_p is not None and top_p < 1:
        in_order = torch.gather(probs, -1, order)
        sums = torch.cumsum(in_order, dim=-1)
        # a token stays if those before it have not reached top_p yet
        enough_before = torch.cat([torch.zeros_like(sums[..., :1]), sums[..., :-1]], dim=-1) >= top_p
        remove = torch.gather(enough_before, -1, rank)
        probs = probs.masked_fill(remove, 0.0)
        probs = probs / probs.sum(dim=-1, keepdim=True)
    return probs
