"""The capstone from end to end: parts are gathered from other notebooks, the model made of them goes the whole way, and
the notebook is graded with them in it. And the oracles of its hidden tests are what they are said to be."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import written

from autograder import assignment as assignments
from autograder.report import Report
from autograder.results import Results
from ichimon import notebook
from ichimon.gather import CAPSTONE, CELL, ORIGIN, gather
from ichimon.notebook import NotebookError

if TYPE_CHECKING:
    from conftest import Command

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = [name for name in dict.fromkeys(chapter for chapter, _ in ORIGIN.values()) if name in assignments.names()]
OWN = {field for field, (chapter, _) in ORIGIN.items() if chapter in CHAPTERS}
ORACLE = runpy.run_path(str(ROOT / "autograder/tests/test_23_your_own_model.py"))

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Makes a student's folder with the capstone and these other chapters; returns the capstone's path."""

    def make(chapters: list[str], **others: str) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("ICHIMON_NOTEBOOKS", raising=False)
        for chapter in [*chapters, CAPSTONE]:
            (tmp_path / f"{chapter}.ipynb").write_text(written(chapter), encoding="utf-8")
        for chapter, text in others.items():
            (tmp_path / f"{chapter.replace('_', '-')}.ipynb").write_text(text, encoding="utf-8")
        return tmp_path / f"{CAPSTONE}.ipynb"

    return make


def cells(path: Path) -> dict[str, str]:
    return {cell.id: cell.source for cell in notebook.cells(path)}


def states(path: Path) -> dict[str, str]:
    return {part.name: part.state for part in gather(path)}


def test_every_part_that_the_notebook_asks_for_has_its_chapter() -> None:
    module = notebook.load(ROOT / f"solutions/{CAPSTONE}.py")
    assert {field.name for field in fields(module.Parts)} == set(ORIGIN)


def test_the_references_parts_are_all_gathered_and_nothing_else_changes(folder: Folder) -> None:
    path = folder(CHAPTERS)
    before = cells(path)
    assert states(path) == {field: "yours" if field in OWN else "missing" for field in ORIGIN}
    after = cells(path)
    assert list(after) == [name for id_ in before for name in ([id_, CELL] if id_ == "set-up" else [id_])]
    assert {name: source for name, source in after.items() if name != CELL} == before
    once = path.read_bytes()
    gather(path)
    assert path.read_bytes() == once, "A second time should change nothing."
    path.write_text(path.read_text(encoding="utf-8").replace(f'"id": "{CELL}"', '"id": "another"'), encoding="utf-8")
    gather(path)
    assert path.read_bytes() == once, "An editor that drops ids should not double the cell."


def test_what_is_missing_is_said_with_what_stands_in(folder: Folder) -> None:
    unfinished = (ROOT / "notebooks/05-normalisation/05-normalisation.ipynb").read_text(encoding="utf-8")
    path = folder(["02-self-attention", "13-router"], **{"05_normalisation": unfinished, "04_feed_forward": "{}"})
    told = {part.name: part for part in gather(path)}
    assert {name for name, part in told.items() if part.state == "yours"} == {"attention", "experts"}
    assert "RMSNorm of chapter 05 is still to be written. PyTorch's own stands in." in told["norm"].sentence
    assert "There is no notebook 03-position.ipynb" in told["rope"].sentence
    assert "04-feed-forward.ipynb is JSON but not a notebook" in told["feed_forward"].sentence
    assert "PARTS = Parts(\n    attention=own_02.attention,\n    experts=own_13.MoELayer,\n)" in cells(path)[CELL]


def test_when_nothing_is_left_the_cell_goes_again(folder: Folder) -> None:
    path = folder(["02-self-attention"])
    gather(path)
    (path.parent / "02-self-attention.ipynb").unlink()
    assert set(states(path).values()) == {"missing"}
    assert CELL not in cells(path)


NORM = """
def root(x):  # a mean of magnitudes is no mean of squares
    return x.abs().mean(-1, keepdim=True)

class RMSNorm(nn.Module):
    def __init__(self, d_model, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x):
        return x / root(x) * self.weight
"""


def test_a_part_that_gives_something_else_is_named(folder: Folder) -> None:
    path = folder(["03-position"], **{"05_normalisation": written("05-normalisation", RMSNorm=NORM)})
    told = {part.name: part for part in gather(path)}
    assert told["norm"].state == "differs"
    assert "RMSNorm of chapter 05 gives something else than PyTorch's own" in told["norm"].sentence
    assert "def root(x)" in cells(path)[CELL], "What a part uses comes along."


def test_a_part_that_raises_is_left_out_with_its_error(folder: Folder) -> None:
    broken = written("09-grouped-queries", repeat_kv="def repeat_kv(x, n_rep):\n    return x.repeat_heads(n_rep)\n")
    path = folder([], **{"09_grouped_queries": broken})
    told = {part.name: part for part in gather(path)}
    assert told["repeat_kv"].state == "missing"
    assert "raises AttributeError: 'Tensor' object has no attribute 'repeat_heads'" in told["repeat_kv"].sentence


def test_what_a_student_wrote_beside_the_answers_comes_along(folder: Folder) -> None:
    document = json.loads(
        written(
            "06-gpt", learning_rate="learning_rate = my_rate\nlearning_rate(0, peak=1, warmup=1, steps=3, final=0)\n"
        )
    )
    first = next(i for i, cell in enumerate(document["cells"]) if cell["id"] == "learning_rate")
    mine = """from __future__ import annotations
from math import cos as kosinus
import math
%time 1 + 1
HALF = 0.5
TEXT = '''a text with " and \\\\ in it'''
if HALF:
    def my_rate(step, *, peak, warmup, steps, final):
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        done = (step - warmup) / (steps - warmup)
        return final + (peak - final) * HALF * (1 + kosinus(math.pi * done))
"""
    added: dict[str, Any] = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    document["cells"].insert(first, {**added, "id": "mine", "source": mine})
    path = folder([], **{"06_gpt": json.dumps(document)})
    told = {part.name: part for part in gather(path)}
    assert told["learning_rate"].state == "yours", told["learning_rate"].sentence
    text = cells(path)[CELL]
    assert text.index("from __future__") < text.index("kosinus") < text.index("HALF = 0.5") < text.index("my_rate")
    assert "final=0)" not in text, "What only shows something stays where it is."


def test_only_the_capstones_notebook_takes_parts(folder: Folder) -> None:
    path = folder(["02-self-attention"])
    with pytest.raises(
        NotebookError, match=r"02-self-attention\.ipynb is not the notebook of chapter 23-your-own-model"
    ):
        gather(path.parent / "02-self-attention.ipynb")
    with pytest.raises(NotebookError, match="There is no file"):
        gather(path.parent / "nowhere.ipynb")


def test_the_command_says_it_in_words(folder: Folder) -> None:
    path = folder(["03-position"])
    ran = subprocess.run(
        [sys.executable, "-m", "ichimon", "gather", path.name],
        cwd=path.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "ICHIMON_NOTEBOOKS": "."},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "rope of chapter 03" in ran.stdout
    assert f"1 of {len(ORIGIN)} parts in {path.name} are your own." in ran.stdout


def test_with_gathered_parts_the_model_goes_the_whole_way(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    path = folder(CHAPTERS)
    gather(path)
    monkeypatch.setenv("ICHIMON_FAST", "1")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    backend = mpl.get_backend()
    mpl.use("agg")
    module = ModuleType("run_of_the_capstone")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for position, cell in enumerate(notebook.cells(path), start=1):
            if cell.kind == "code":
                notebook.run(cell, vars(module), f"capstone, cell {position}")
    mpl.use(backend)
    printed = said.getvalue()
    assert "first, then run this cell again" not in printed
    assert printed.count("yours, from own_") == len(OWN)
    assert f"{len(OWN)} of {len(ORIGIN)} are the author's own" in printed
    assert "MODEL CARD" in printed
    numbers = [line for line in printed.splitlines() if line.startswith("The bill says ")]
    billed, weighs = (int("".join(filter(str.isdigit, part))) for part in numbers[0].split("and the model"))
    assert billed == weighs


def test_it_is_graded_with_the_parts_in_it(folder: Folder, tmp_path: Path, command: Command) -> None:
    course = tmp_path / "course"
    reports = {}
    for who, chapters, others in (
        ("all", CHAPTERS, {}),
        ("half", CHAPTERS[: len(CHAPTERS) // 2], {}),
        (
            "wrong",
            [c for c in CHAPTERS if c[:2] != "05"],
            {"05_normalisation": written("05-normalisation", RMSNorm=NORM)},
        ),
    ):
        for old in tmp_path.glob("*.ipynb"):
            old.unlink()
        path = folder(chapters, **others)
        gather(path)
        handed_in = course / who / CAPSTONE / path.name
        handed_in.parent.mkdir(parents=True)
        handed_in.write_bytes(path.read_bytes())
    ran = command("grade", course, "--results", tmp_path / "results.sqlite")
    assert ran.code == 0, ran.err
    with Results(tmp_path / "results.sqlite") as stored:
        reports = {report.student: report for report in stored.reports()}
    assert lost(reports["all"]) == {}
    assert lost(reports["half"]) == {}
    wrong = lost(reports["wrong"])
    assert list(wrong) == ["test_the_parts_of_your_own_fit_together"], "One small test is all that a wrong part costs."
    assert "Of your own parts, norm makes the logits wrong." in wrong["test_the_parts_of_your_own_fit_together"]


def lost(report: Report) -> dict[str, str]:
    return {test.name: test.message for exercise in report.exercises for test in exercise.tests if not test.passed}


# -- the oracles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["DENSE", "MOE"])
def test_the_plain_decoder_is_transformers_llama_and_mixtral(kind: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    c: dict[str, Any] = {**ORACLE[kind], "d_model": 12}  # the config wants a multiple of the heads
    weights, ids = ORACLE["drawn"](ORACLE["shapes"](c)), ORACLE["ids_of"](2, 9)
    shape: dict[str, Any] = {
        "vocab_size": c["vocabulary"],
        "hidden_size": c["d_model"],
        "num_hidden_layers": c["n_layers"],
        "num_attention_heads": c["n_heads"],
        "num_key_value_heads": c["n_kv_heads"],
        "head_dim": c["d_head"],
        "intermediate_size": c["d_hidden"],
        "rope_parameters": {"rope_type": "default", "rope_theta": c["rope_theta"]},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "sliding_window": None,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    names = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "attention": "self_attn"}
    names |= {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"} if kind == "DENSE" else {}
    names |= {"router": "gate", "gate_up": "experts.gate_up_proj"} if kind == "MOE" else {}
    model: Any
    if kind == "DENSE":
        model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in shape.items() if k != "sliding_window"}))
    else:
        extra: dict[str, Any] = {"num_local_experts": c["n_experts"], "num_experts_per_tok": c["top_k"]}
        extra["experts_implementation"] = "eager"
        model = MixtralForCausalLM(MixtralConfig(**shape, **extra))
    state = {}
    for name, value in weights.items():
        parts = [names.get(part, part) for part in name.split(".")]
        theirs = ".".join(parts).replace("blocks.", "layers.").replace("tokens.", "embed_tokens.")
        state["model." + (theirs.replace("mlp.down", "mlp.experts.down_proj") if kind == "MOE" else theirs)] = value
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert not unexpected
    model.tie_weights()
    with torch.no_grad():
        assert torch.allclose(ORACLE["oracle"](c, weights, ids), model.eval()(ids).logits, atol=1e-4)


@pytest.mark.parametrize(("kind", "name"), [("dense", "DENSE"), ("moe", "MOE")])
def test_products_are_counted_as_pytorch_counts_them(kind: str, name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for n in (1, 6):
        weights = ORACLE["drawn"](ORACLE["shapes"](ORACLE[name]))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ORACLE["oracle"](ORACLE[name], weights, ORACLE["ids_of"](1, n))
        assert ORACLE["counted_flops"](kind, n) == counter.get_total_flops()


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_the_model_that_the_page_prints_is_the_one_that_ships(kind: str) -> None:
    from ichimon.moe import load_trained

    page = (ROOT / "book/23-your-own-model.md").read_text(encoding="utf-8")
    code = page.split("tags: [the-whole-model]\n---\n")[1].split("```")[0]
    room: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, "the page of chapter 23", "exec"), room)
    assert said.getvalue().count("Return the") == 2
    model, bpe = load_trained("dense" if kind == "dense" else "moe")
    ids = bpe.encode("If the argument is a list, return the number of").ids
    with torch.no_grad():
        right = model(torch.tensor([ids])).logits[0]
    tensors, _ = room["read"](ROOT / f"ichimon/trained/{kind}.safetensors")
    cache: list[list[Any]] = [[] for _ in range(3)]
    chunks = [
        room["model"](torch.tensor(part).numpy(), tensors, cache, *room["CONSTANTS"][kind])
        for part in (ids[:5], ids[5:])
    ]
    found = torch.cat([torch.from_numpy(chunk) for chunk in chunks])
    assert torch.allclose(found.float(), right, atol=1e-3)
