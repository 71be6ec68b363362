"""A student's own parts, from their own notebooks; and where two models part."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ichimon
from ichimon.diff import diff

ROOT = Path(__file__).resolve().parents[1]
NAME = "02-self-attention"


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The released notebook of a student who has done the mask and nothing else, in notebooks/ of where they are."""
    released = json.loads((ROOT / f"notebooks/{NAME}/{NAME}.ipynb").read_text(encoding="utf-8"))
    for cell in released["cells"]:
        if cell["id"] == "causal_mask":
            cell["source"] = "def causal_mask(n):\n    return torch.ones(n, n, dtype=torch.bool).tril()\n"
    path = tmp_path / "notebooks" / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(released), encoding="utf-8")
    (tmp_path / "work" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "deeper")
    monkeypatch.delenv("ICHIMON_NOTEBOOKS", raising=False)
    return path


def test_a_part_is_found_from_a_folder_below(notebook: Path) -> None:
    parts = ichimon.mine(NAME)
    assert parts.causal_mask(2).tolist() == [[True, False], [True, True]]
    assert dir(parts) == ["causal_mask"]


def test_an_unfinished_part_is_named_with_its_notebook(notebook: Path) -> None:
    with pytest.raises(
        ichimon.NotYet, match=f"attention is still to be written: finish it in {re.escape(str(notebook))}"
    ):
        _ = ichimon.mine(NAME).attention


def test_a_part_that_no_exercise_asks_for_is_told_with_what_there_is(notebook: Path) -> None:
    with pytest.raises(ichimon.NotYet, match="defines no rope; its exercises are causal_mask, attention, split_heads"):
        _ = ichimon.mine(NAME).rope


def test_a_notebook_that_is_not_there_is_told_with_the_chapter(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ichimon.NotYet, match=r"no notebook 03-position\.ipynb in .* Work through chapter 03 first"):
        ichimon.mine("03-position")
    monkeypatch.setenv("ICHIMON_NOTEBOOKS", str(notebook.parent))
    assert ichimon.mine(NAME).causal_mask(1).item()
    monkeypatch.setenv("ICHIMON_NOTEBOOKS", "/nowhere")
    with pytest.raises(ichimon.NotYet, match="in /nowhere, where ICHIMON_NOTEBOOKS points"):
        ichimon.mine(NAME)


def test_a_notebook_that_raises_is_told_with_its_cell(notebook: Path) -> None:
    broken = json.loads(notebook.read_text(encoding="utf-8"))
    next(cell for cell in broken["cells"] if cell["id"] == "causal_mask")["source"] = "1 / 0"
    notebook.write_text(json.dumps(broken), encoding="utf-8")
    with pytest.raises(
        ichimon.NotYet, match=r"chapter 02-self-attention does not run yet: .*cell causal_mask raised ZeroDivisionError"
    ):
        ichimon.mine(NAME)


class Layer(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 4), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.inner(x)


def stack(*scales: float) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[Layer(scale) for scale in scales])


def test_equal_models_do_not_part() -> None:
    assert diff(stack(1, 1, 1), stack(1, 1, 1), torch.randn(2, 4)) is None


def test_the_first_sub_layer_that_differs_is_named_with_how_many_agree() -> None:
    found = diff(stack(1, 1, 1), stack(1, 1.5, 1), torch.randn(2, 4))
    assert found is not None
    assert (found.name, found.agreed) == ("1", ("0.inner", "0", "1.inner"))
    assert re.fullmatch(
        r"They part at 1: the outputs differ by up to [\d.]+; 3 before it agree, the last of them 1\.inner\.",
        str(found),
    )


def test_sub_layers_may_be_called_otherwise_in_the_other_model() -> None:
    torch.manual_seed(0)
    other = nn.ModuleDict({"a": Layer(), "b": Layer(2)})
    other.forward = lambda x: other["b"](other["a"](x))  # type: ignore[method-assign]
    found = diff(stack(1, 1), other, torch.randn(2, 4), names={"0": "a", "1": "b"})
    assert found is not None
    assert str(found).startswith("They part at 1 (b in the other): ")


def test_other_shapes_and_nan_are_differences() -> None:
    other = stack(1, 1)
    other[1] = nn.Linear(4, 5)
    found = diff(stack(1, 1), other, torch.randn(2, 4))
    assert found is not None
    assert "the shapes are (2, 4) and (2, 5)" in str(found)
    with torch.no_grad():
        (broken := stack(1, 1))[0].inner.weight[0, 0] = float("nan")
    found = diff(stack(1, 1), broken, torch.randn(2, 4))
    assert found is not None
    assert (found.name, found.largest) == ("0.inner", float("inf"))
    assert "it is the first sub-layer that was compared" in str(found)


def test_a_name_that_is_not_there_and_models_without_a_common_name_are_refused() -> None:
    with pytest.raises(ValueError, match="The second model has no sub-layer 'x'"):
        diff(stack(1), stack(1), torch.randn(2, 4), names={"0": "x"})
    with pytest.raises(ValueError, match="no sub-layer of the same name"):
        diff(stack(1), nn.ModuleDict({"a": Layer()}), torch.randn(2, 4))
