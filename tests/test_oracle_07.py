"""The plain GPT-2 in the hidden tests of chapter 07 is transformers' GPT-2, which costs seconds to import there."""

import runpy

import torch

from ichimon.measure import ROOT

ORACLE = runpy.run_path(str(ROOT / "autograder/tests/test_07_kv_cache.py"))


def test_the_plain_gpt2_gives_the_logits_and_writes_the_tokens_of_transformers() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    weights, prompt = ORACLE["gpt2_weights"](), ORACLE["prompts"](2, 5, vocabulary=ORACLE["GPT2"]["vocab_size"])
    model = GPT2LMHeadModel(GPT2Config(**ORACLE["GPT2"], bos_token_id=0, eos_token_id=0)).eval()
    state = {f"transformer.{name}": value for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}  # tied to the embedding
    assert not unexpected
    model.tie_weights()
    with torch.no_grad():
        assert torch.allclose(ORACLE["gpt2"](weights, prompt), model(prompt).logits, atol=1e-4)
    theirs = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = prompt
    for _ in range(8):
        ours = torch.cat([ours, ORACLE["gpt2"](weights, ours)[:, -1:].argmax(-1)], 1)
    assert torch.equal(ours, theirs)
