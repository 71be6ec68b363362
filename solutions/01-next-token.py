# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
#   ichimon:
#     assignment: 01-next-token
# ---

# %% [markdown]
# # 01 · From text to the next token
#
# **One question: how does a language model work at all?**
#
# It reads a text and says how probable each possible next piece is. Somebody draws one of them, appends it, and asks
# again. That is all it does, and everything else in this course is about doing it well.
#
# In this notebook you build what stands before the model and behind it: cutting text into *tokens* and putting them
# together again, the number that says how wrong a guess was, and the choice of the next token. In between stands, for
# now, a model that only counts.
#
# The page of the book that goes with this notebook is `book/01-next-token`.
#
# | part | difficulty | minutes | points |
# |---|---|---|---|
# | `train_bpe` | ●●● | 35 | 7 |
# | `encode` | ●●○ | 20 | 4 |
# | `decode` | ●○○ | 10 | 3 |
# | `next_token_loss` | ●●○ | 20 | 4 |
# | `next_token_distribution` | ●●○ | 30 | 6 |
#
# ## Conventions
#
# - **A token is an id**, an integer. The ids 0 to 255 are the 256 bytes. Id 256 + i is what merge number i made,
#   counted from 0.
# - **A list of merges** holds pairs of ids in the order in which they were learnt: `[(104, 101), (256, 32), ...]`. It
#   is all that a tokeniser has to remember.
# - **Text is a `str`**, any that UTF-8 can write: every language, every emoji, line breaks, the empty string.
# - **Shapes** are written as jaxtyping writes them: `Float[Tensor, "batch n vocab"]` is a tensor of floats with these
#   three dimensions.
# - **What comes in goes out**: a tensor has the dtype of the tensor it was made from, and an input is never changed.
#
# The set-up cell gives you `pieces`, which cuts a text into words, each with the space before it, runs of punctuation,
# and runs of white space. Put together, the pieces are the text again. Tokens never reach across the border of a piece.

# %% role="set-up"
import math
import re
from collections import Counter
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

PAD = -100  # an id that stands for "no token here"


def pieces(text: str) -> list[str]:
    """Words with the space before them, runs of punctuation, runs of white space: together they are the text."""
    return re.findall(r" ?\w+| ?[^\w\s]+|\s+", text)


# %% [markdown]
# ## 1 · `train_bpe` ●●●
#
# Which strings deserve a token of their own? *Byte-pair encoding* starts from single bytes, looks for the pair of
# neighbours that occurs most often, makes one token of it everywhere, and starts again.
#
# `train_bpe(text, n_merges)` returns the list of merges.
#
# - The text is first cut by `pieces`, and each piece is written as its UTF-8 **bytes**: the ids 0 to 255.
# - One round: count all pairs of neighbours inside pieces. Choose the pair with the highest count. Where two pairs
#   have the same count, the **smaller pair** wins, as Python compares tuples: `(97, 98)` before `(97, 99)` before
#   `(98, 97)`.
# - The chosen pair becomes the next id, and replaces the pair in every piece, from left to right.
# - Every place where a pair stands counts, also where two of them overlap: in `aaa` the pair of two `a` counts twice,
#   but only the first two can be merged.
# - A piece that occurs ten times counts ten times.
# - A pair that occurs only once may be chosen too. When no pair is left at all, the list ends early.
# - `n_merges` is at least 0. A few thousand bytes and sixty merges should take well under a second.
# - The trap: `len("é")` is 1, but UTF-8 writes `é` as two bytes.
#
# The libraries tokenizers and transformers cannot be imported while your work is marked: what they do is the exercise.


# %% exercise="train_bpe" section="Which pieces? Count"
def train_bpe(text: str, n_merges: int) -> list[tuple[int, int]]:
    """Learn up to n_merges merges of byte-level byte-pair encoding; merge i makes the id 256 + i.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), algorithm 1; on bytes as in Radford et al. 2019, section 2.2.
    """
    ### BEGIN SOLUTION
    words = Counter(tuple(piece.encode()) for piece in pieces(text))
    merges: list[tuple[int, int]] = []
    while len(merges) < n_merges:
        counts: Counter[tuple[int, int]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merged = {}
        for word, times in words.items():
            ids, i = [], 0
            while i < len(word):
                found = word[i : i + 2] == best
                ids.append(256 + len(merges) if found else word[i])
                i += 2 if found else 1
            merged[tuple(ids)] = times
        words = merged
        merges.append(best)
    return merges
    ### END SOLUTION


# %% check="train_bpe" points=7
merges = train_bpe("low low low lower", 3)
assert isinstance(merges, list), f"train_bpe should return a list, not {type(merges).__name__}."
assert len(merges) == 3, f"train_bpe(text, 3) should find 3 merges here, not {len(merges)}."
assert all(isinstance(pair, tuple) and len(pair) == 2 for pair in merges), "Each merge should be a tuple of two ids."
assert merges[0] == (108, 111), (
    f"In 'low low low lower' the first merge should be l (108) with o (111), not {merges[0]}. The pair o, w occurs as "
    "often, and then the smaller pair wins."
)
assert merges[1] == (256, 119), (
    f"After that, lo is the token 256 and stands before w (119) four times: the second merge should be (256, 119), not "
    f"{merges[1]}."
)
assert train_bpe("é", 5) == [(0xC3, 0xA9)], "UTF-8 writes é as the bytes C3 A9: they are the one pair that there is."
assert train_bpe("a a", 5) == [(32, 97)], (
    "'a a' is cut into two pieces, an a and an a with its space, and no merge may reach from one piece into another: "
    f"there is one pair to merge, and you found {train_bpe('a a', 5)}."
)
assert train_bpe("a", 5) == [], "A text of one byte has no pairs: there should be no merges."
print("The visible checks of train_bpe pass.")

# %% see="train_bpe"
# What gets a token first? The text comes with Python: a chapter of its language reference. Try another text.
try:
    import os
    from pydoc_data.topics import topics

    english = " ".join(" ".join(topics[name].split()) for name in ("objects", "specialnames", "compound"))
    english = english[:4000] if os.environ.get("ICHIMON_FAST") == "1" else english[:40000]
    merges = train_bpe(english, 120)
    token = {i: bytes([i]) for i in range(256)}
    for i, (left, right) in enumerate(merges):
        token[256 + i] = token[left] + token[right]
    print(f"{len(english):,} characters. The first 40 merges, in order:")
    print("  ".join(repr(token[256 + i].decode(errors="replace")) for i in range(40)))
    print("The longest tokens:")
    longest = sorted(token.values(), key=len, reverse=True)[:12]
    print("  ".join(repr(word.decode(errors="replace")) for word in longest))
except NotImplementedError:
    print("Finish train_bpe first, then run this cell again.")

# %% [markdown]
# Nobody told it what a word is, or a syllable. `' the'` is there because it is frequent, and shorter pieces of it
# because `' the'` had to be built from something.
#
# ## 2 · `encode` ●●○
#
# With the merges learnt, a new text can be cut. Training decided an order, and encoding replays it: whatever was merged
# early is merged first.
#
# `encode(text, merges)` returns the ids of the text.
#
# - The text is cut by `pieces`, and each piece is encoded by itself, starting from its UTF-8 bytes.
# - As long as a piece holds a pair that is in `merges`, merge the pair that stands **earliest in the list**, wherever
#   it is in the piece. Where the same pair stands twice, go from left to right.
# - The merges come from any text, not only from this one. `merges` may be empty. The empty text has no ids.
# - No pair is in the list twice.
# - The trap: the longest token that fits is not always the one that these rules give.


# %% exercise="encode" section="Which pieces? Count"
def encode(text: str, merges: list[tuple[int, int]]) -> list[int]:
    """Cut a text into tokens: in each piece, the earliest merge in the list first, from left to right.

    Source: Sennrich et al. 2016 (arXiv 1508.07909), section 3.2.
    """
    ### BEGIN SOLUTION
    rank = {pair: i for i, pair in enumerate(merges)}
    tokens: list[int] = []
    for piece in pieces(text):
        ids = list(piece.encode())
        while True:
            pairs = list(pairwise(ids))
            first = min(pairs, key=lambda pair: rank.get(pair, len(rank)), default=None)
            if first not in rank:
                break
            at = pairs.index(first)
            ids[at : at + 2] = [256 + rank[first]]
        tokens += ids
    return tokens
    ### END SOLUTION


# %% check="encode" points=4
ids = encode("hé", [])
assert isinstance(ids, list), f"encode should return a list, not {type(ids).__name__}."
assert ids == [104, 0xC3, 0xA9], f"Without merges the ids of a text are its UTF-8 bytes, but 'hé' became {ids}."
merges = [(98, 99), (97, 98)]  # bc is 256, ab is 257
assert encode("abc", merges) == [97, 256], (
    f"In 'abc' the merge of b with c stands earlier in the list, so it comes first; you got {encode('abc', merges)}."
)
assert encode("ab abc", merges) == [257, 32, 97, 256], (
    f"'ab abc' should be ab, a space, a, bc; you got {encode('ab abc', merges)}."
)
print("The visible checks of encode pass.")

# %% see="encode"
# A tokeniser trained on English, on four texts. Each bar ends a token; «E7AE» are bytes that are no whole character.
try:
    samples = {
        "English": "The value of an object is not always the same.",
        "code": "def __init__(self, value):\n    self.value = value",
        "Japanese": "橋の上で箸を買いました。",
        "emoji": "👩‍🚀 🍣",
    }
    merges = train_bpe(english, 120)
    token = {i: bytes([i]) for i in range(256)}
    for i, (left, right) in enumerate(merges):
        token[256 + i] = token[left] + token[right]
    for name, text in samples.items():
        ids = encode(text, merges)
        shown = []
        for i in ids:
            try:
                shown.append(token[i].decode())
            except UnicodeDecodeError:
                shown.append(f"«{token[i].hex().upper()}»")
        n_bytes = len(text.encode())
        print(f"{name}: {n_bytes} bytes, {len(ids)} tokens, {n_bytes / len(ids):.1f} bytes a token")
        print("|".join(shown).replace("\n", "↵"), "\n")
except (NotImplementedError, NameError):
    print("Finish train_bpe and encode first, and run their cells, then run this cell again.")

# %% [markdown]
# A tokeniser is good at what it was trained on. The Japanese sentence says no more than the English one and costs more
# tokens, and somebody pays for each of them.
#
# ## 3 · `decode` ●○○
#
# And back again. `decode(ids, merges)` returns the text that the ids stand for.
#
# - `decode(encode(text, merges), merges)` is the text, whatever the text is.
# - A token may end in the middle of a character, and a model may produce any ids in any order. What is no valid UTF-8
#   is replaced just as `bytes.decode(errors="replace")` replaces it: by `"\ufffd"`, the character �.
# - An id that no byte and no merge has, such as −1 or one that is too large, raises a `ValueError` whose sentence names
#   the id.
# - No ids are the empty text.
# - The trap: the bytes of one character may come from several tokens.


# %% exercise="decode" section="From text to numbers"
def decode(ids: list[int], merges: list[tuple[int, int]]) -> str:
    """The text that the ids stand for; what is no valid UTF-8 becomes U+FFFD.

    Raises ValueError for an id that is not in the vocabulary.
    """
    ### BEGIN SOLUTION
    vocabulary = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        vocabulary.append(vocabulary[left] + vocabulary[right])
    for i in ids:
        if not 0 <= i < len(vocabulary):
            raise ValueError(f"there is no token {i}: the ids of this vocabulary are 0 to {len(vocabulary) - 1}")
    return b"".join(vocabulary[i] for i in ids).decode(errors="replace")
    ### END SOLUTION


# %% check="decode" points=3
text = decode([104, 105], [])
assert isinstance(text, str), f"decode should return a str, not {type(text).__name__}."
assert text == "hi", f"The bytes 104 and 105 are 'hi', not {text!r}."
assert decode([256, 33], [(104, 105)]) == "hi!", "Id 256 stands for the two ids of the first merge."
text = decode([257], [(104, 105), (256, 33)])
assert text == "hi!", f"A merge may be made of merges: here id 257 stands for 256 and 33, so for 'hi!', not {text!r}."
assert decode([0xC3, 0xA9], []) == "é", "The bytes C3 and A9 are two tokens here, and one character: é."
try:
    decode([300], [])
    message = ""
except ValueError as error:
    message = str(error)
assert "300" in message, (
    "decode([300], []) should raise a ValueError that names 300: without merges 255 is the last id."
)
print("The visible checks of decode pass.")

# %% see="decode"
# A model writes token by token. What does the reader see while a character is not yet finished?
try:
    written = list("箸 = 🥢".encode())
    for n in range(1, len(written) + 1):
        print(f"{n:2d} tokens: {decode(written[:n], [])}")
except NotImplementedError:
    print("Finish decode first, then run this cell again.")

# %% [markdown]
# This is why a chat window waits for the rest of a character before it shows it.
#
# ## 4 · `next_token_loss` ●●○
#
# A model reads `n` tokens and gives, at every position, a score for each token of the vocabulary: the *logits*. Their
# softmax is its probability of what comes **next**. How wrong it was at a position is $-\ln p$ of the token that really
# came, in *nats*. With $\log_2$ in place of $\ln$ it is in *bits*.
#
# `next_token_loss(logits, ids, n_bytes)` returns a pair:
#
# 1. the mean of $-\ln p$ over all predicted tokens of the batch, in nats a token;
# 2. the sum of $-\log_2 p$ over all predicted tokens of the batch, divided by `n_bytes`: bits a byte.
#
# | argument | shape | |
# |---|---|---|
# | `logits` | `(batch, n, vocab)` | float32, float64 or bfloat16; position `t` says what it expects at `t + 1` |
# | `ids` | `(batch, n)` | int64; what is really there |
# | `n_bytes` | a number | how many bytes of text the predicted tokens stand for, all together |
# | result | two tensors of shape `()` | same dtype as `logits`; both can be differentiated |
#
# - The first token of a sequence is predicted by nobody. What the last position expects is judged by nobody.
# - Sequences that are shorter than `n` are filled up at their end with `PAD`, which is −100. `PAD` is not predicted and
#   counts for nothing. There may be sequences of one token, and at least one token in the batch is predicted.
# - Every predicted token counts the same, whichever sequence it is in.
# - Logits around ±10⁴ give finite results.
# - The trap: a loss that is far too good usually means that each position was asked for the token it has just read.
#
# You may use `F.cross_entropy`.


# %% exercise="next_token_loss" section="Two ways to give the loss"
def next_token_loss(
    logits: Float[Tensor, "batch n vocab"], ids: Int[Tensor, "batch n"], n_bytes: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean loss in nats a token, and the whole loss in bits a byte, of predicting each token from those before."""
    ### BEGIN SOLUTION
    targets = ids[:, 1:].flatten()
    nats = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=PAD)
    n_predicted = (targets != PAD).sum()
    return nats, nats * n_predicted / math.log(2) / n_bytes
    ### END SOLUTION


# %% check="next_token_loss" points=4
ids = torch.tensor([[3, 1, 2], [0, 2, PAD]])
result = next_token_loss(torch.zeros(2, 3, 4), ids, 6)
assert isinstance(result, tuple), f"next_token_loss should return a tuple, not {type(result).__name__}."
assert len(result) == 2, f"next_token_loss should return two numbers, nats a token and bits a byte, not {len(result)}."
nats, bits = result
assert all(isinstance(value, torch.Tensor) and value.shape == () for value in (nats, bits)), (
    "Both results should be tensors without dimensions: one number each, through which gradients can flow."
)
assert math.isclose(nats.item(), math.log(4), rel_tol=1e-4), (
    f"Four tokens that are all equally likely cost ln 4 nats each, {math.log(4):.3f}, not {nats.item():.3f}."
)
assert math.isclose(bits.item(), 1, rel_tol=1e-4), (
    f"Three tokens are predicted here, at 2 bits each, for 6 bytes: that is 1 bit a byte, not {bits.item():.3f}."
)
certain = 50 * F.one_hot(torch.tensor([[1, 2, 0]]), 4).float()  # at each position sure of what comes next
assert next_token_loss(certain, ids[:1], 6)[0] < 1e-4, (
    "A model that is sure of the right next token at each position should have a loss of 0. Which logits belong to "
    "which id?"
)
print("The visible checks of next_token_loss pass.")

# %% see="next_token_loss"
# The loss of one guess against the probability that the right token was given.
try:
    import matplotlib.pyplot as plt

    p = torch.linspace(0.01, 0.99, 99)
    logits = torch.stack([torch.log(p / (1 - p)), torch.zeros(99)], -1)  # two tokens; token 0 has probability p
    loss = [next_token_loss(row.expand(1, 2, 2), torch.tensor([[1, 0]]), 1) for row in logits]
    fig, ax = plt.subplots(figsize=(6, 3), facecolor="white")
    ax.plot(p, [bits for _, bits in loss], color="#0072B2", label="bits")
    ax.plot(p, [nats for nats, _ in loss], "--", color="#D55E00", label="nats")
    ax.set(xlabel="probability given to the token that came", ylabel="loss", title="To be sure and wrong is dear")
    ax.legend()
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish next_token_loss first, then run this cell again.")

# %% [markdown]
# ## 5 · `next_token_distribution` ●●○
#
# A model gives probabilities. What it writes is drawn from them, and three knobs change them first.
#
# `next_token_distribution(logits, temperature=1.0, top_k=None, top_p=None)` takes logits of shape `(..., vocab)` and
# returns probabilities of the same shape and dtype. In this order:
#
# 1. **Temperature** ($\ge 0$): the softmax is that of `logits / temperature`. At temperature 0 the largest logit gets
#    probability 1 and all others 0.
# 2. **Top-k** (an integer $\ge 1$; `None`: no limit): only the `top_k` most probable tokens are kept. If it exceeds the
#    vocabulary, all are.
# 3. **Top-p** ($0 < p \le 1$; `None`: no limit): the probabilities of what step 2 kept are made to sum to 1. Of these,
#    from the most probable on, the fewest tokens are kept whose probabilities sum to at least `top_p`. So the token
#    that crosses the threshold is kept, there is always at least one, and 1 keeps all.
#
# What is kept is renormalised, so that every row sums to 1; the rest has probability 0 exactly.
#
# - Ties, in all three: of tokens with equal logits **the lower id comes first**. So exactly `top_k` tokens are kept,
#   and at temperature 0 the lowest id of the largest logits gets everything.
# - Every row is treated by itself. There may be any number of dimensions before `vocab`, also none.
# - A logit may be −inf: that token is forbidden and always gets 0. At least one logit in a row is finite. Logits around
#   ±10⁴ and temperatures down to 10⁻³ give no NaN.
# - The trap: the order of the three steps matters.


# %% exercise="next_token_distribution" section="From a guess to text"
def next_token_distribution(
    logits: Float[Tensor, "... vocab"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "... vocab"]:
    """Probabilities of the next token: temperature, then top-k, then top-p, and what is left sums to 1.

    Source: Holtzman et al. 2020 (arXiv 1904.09751), section 3.
    """
    ### BEGIN SOLUTION
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    ordered, order = logits.sort(descending=True, stable=True)
    p = (ordered / temperature).softmax(-1)
    if top_k is not None:
        p = p * (torch.arange(p.shape[-1]) < top_k)
        p = p / p.sum(-1, keepdim=True)
    if top_p is not None and top_p < 1:
        before = p.cumsum(-1) - p
        p = p * (before < top_p)
        p = p / p.sum(-1, keepdim=True)
    return p.scatter(-1, order, p)  # each back to its token
    ### END SOLUTION


# %% check="next_token_distribution" points=6
logits = torch.tensor([1.0, 4.0, 2.0, 2.0]).log()  # probabilities of 1/9, 4/9, 2/9, 2/9
p = next_token_distribution(logits)
assert isinstance(p, torch.Tensor), f"next_token_distribution should return a tensor, not {type(p).__name__}."
assert p.shape == logits.shape, f"The result should have the shape of the logits, {tuple(logits.shape)}, not {p.shape}."
for knobs, weights in (
    ({}, [1, 4, 2, 2]),
    ({"temperature": 0.5}, [1, 16, 4, 4]),
    ({"temperature": 0}, [0, 1, 0, 0]),
    ({"top_k": 2}, [0, 4, 2, 0]),
    ({"top_p": 0.5}, [0, 4, 2, 0]),
):
    wanted = torch.tensor(weights) / sum(weights)
    found = next_token_distribution(logits, **knobs)
    assert torch.allclose(found, wanted, atol=1e-5), (
        f"Tokens with probabilities 1/9, 4/9, 2/9, 2/9 and the setting {knobs or 'as it is by default'} should give "
        f"{[round(x, 3) for x in wanted.tolist()]}, not {[round(x, 3) for x in found.tolist()]}."
    )
print("The visible checks of next_token_distribution pass.")

# %% see="next_token_distribution"
# One prediction, four settings. Which bars vanish, and which only shrink? Turn the knobs.
try:
    import matplotlib.pyplot as plt

    words = ["Tokyo", "Kyoto", "Osaka", "Paris", "the", "a", "sushi", "banana"]
    logits = torch.tensor([4.0, 3.2, 2.6, 1.5, 1.0, 0.6, 0.2, -1.0])
    settings = [{}, {"temperature": 0.5}, {"temperature": 2.0}, {"top_p": 0.8}]
    fig, axes = plt.subplots(1, 4, figsize=(9, 2.8), sharey=True, facecolor="white")
    for ax, knobs in zip(axes, settings, strict=True):
        ax.bar(words, next_token_distribution(logits, **knobs), color="#0072B2")
        ax.set_title(", ".join(f"{name} {value}" for name, value in knobs.items()) or "as the model says")
        ax.tick_params(axis="x", rotation=90)
    axes[0].set_ylabel("probability")
    fig.suptitle("“The capital of Japan is …”: temperature bends the curve, top-p cuts its tail")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    plt.close()
    print("Finish next_token_distribution first, then run this cell again.")

# %% [markdown]
# ## A language model out of your five parts
#
# Here is a language model without a neural network. It counts how often each token follows each other one, and that is
# all it knows: its memory is one token long. The rest is yours: your tokens, your loss, your choice of the next one.
#
# Before you run it: with more merges a token is longer. Will the loss **a token** go up or down? And the loss **a
# byte**?


# %% see="next_token_distribution"
def counted(ids: list[int], vocab: int) -> Tensor:
    """Logits of a bigram model, [vocab, vocab]: row `a` says what follows token a."""
    pairs = torch.zeros(vocab, vocab)
    pairs.index_put_((torch.tensor(ids[:-1]), torch.tensor(ids[1:])), torch.ones(len(ids) - 1), accumulate=True)
    single = torch.bincount(torch.tensor(ids), minlength=vocab) + 0.1
    return (pairs + 2 * single / single.sum()).log()  # a little of how frequent a token is at all


def tokens_of(text: str, merges: list[tuple[int, int]]) -> list[int]:
    """encode, with each piece encoded once."""
    known = {piece: encode(piece, merges) for piece in set(pieces(text))}
    return [i for piece in pieces(text) for i in known[piece]]


model, table = None, []
try:
    import os
    from pydoc_data.topics import topics

    import matplotlib.pyplot as plt

    fast = os.environ.get("ICHIMON_FAST") == "1"
    reference = "\n".join(topics[name] for name in sorted(topics))[: 20_000 if fast else 200_000]
    cut = len(reference) * 9 // 10
    learnt, unseen = reference[:cut], reference[cut:]
    merges = train_bpe(learnt, 60 if fast else 400)
    for n in (0, 60) if fast else (0, 50, 100, 200, 400):
        model = counted(tokens_of(learnt, merges[:n]), 256 + n)
        ids = torch.tensor([tokens_of(unseen, merges[:n])])
        n_bytes = len(unseen.encode()) - len(decode(ids[0, :1].tolist(), merges).encode())
        nats, bits = next_token_loss(model[ids], ids, n_bytes)
        table.append((n, nats.item(), bits.item()))
    fig, axes = plt.subplots(1, 2, figsize=(8, 3), facecolor="white")
    axes[0].plot([row[0] for row in table], [row[1] for row in table], "o-", color="#D55E00")
    axes[1].plot([row[0] for row in table], [row[2] for row in table], "o-", color="#0072B2")
    axes[0].set(xlabel="merges", ylabel="nats a token", title="A token gets harder to guess")
    axes[1].set(xlabel="merges", ylabel="bits a byte", title="The text gets easier")
    fig.tight_layout()
    plt.show()
except NotImplementedError:
    print("Finish all five parts first, then run this cell again.")

# %% [markdown]
# The loss a token says nothing by itself: it depends on what a token is. Bits a byte can be compared, between
# tokenisers and between models, because the bytes of a text are what they are.
#
# Now let it write. The knobs are yours.

# %% see="next_token_distribution"
if model is None or not table:
    print("Run the cell above first, once it works, then run this cell again.")
else:
    torch.manual_seed(0)
    for knobs in ({"temperature": 0}, {"temperature": 0.7}, {"top_p": 0.9}, {"temperature": 2.0}):
        ids = tokens_of("The", merges)
        while len(ids) < 60:
            p = next_token_distribution(model[ids[-1]], **knobs)
            ids.append(int(torch.multinomial(p, 1)))
        print(knobs, "\n", decode(ids, merges), "\n")

# %% [markdown]
# At temperature 0 it goes round in circles. At 2 it babbles. In between it has the rhythm of a manual and not a thought
# in it: one token of memory is not enough. How a token can look at all those before it is chapter 02.
#
# ## What decides your mark
#
# The checks above are the friendly part. Hidden tests decide: they compare your tokens with those of a tokeniser that
# is used in practice, they send every kind of character, padded batches, very large scores, ties, other dtypes, and
# they check the laws that hold whatever the numbers are. Each exercise is marked by itself, and every test that passes
# counts.
#
# Before you hand in, run `python -m ichimon check 01-next-token.ipynb` in a terminal. It runs your cells and the
# visible checks from top to bottom and says in words what it finds.
