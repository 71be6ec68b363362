"""What a platform gives, put where nbgrader looks; and marks put into the platform's own file."""

from __future__ import annotations

import csv
import logging
import re
import zipfile
from pathlib import Path

import pytest
from nbgrader.api import Gradebook
from traitlets.config import Config
from typer.testing import CliRunner

from autograder import roster as rosters
from autograder.assignment import COURSE
from autograder.cli import app
from autograder.collect import Collected, collect, decisions
from autograder.exports import CanvasExport, ExportError, MoodleExport
from autograder.roster import RosterError

NAME = "02-self-attention"
NOTEBOOK = (COURSE / "notebooks" / NAME / f"{NAME}.ipynb").read_bytes()

CANVAS = """\
Student,ID,SIS User ID,SIS Login ID,Section,02-self-attention (4711),Homework Current Score
    Points Possible,,,,,20,(read only)
"Ito, Aya",101,S1,aya,One,,
"Berg, Bo",102,S2,bo,One,7,35
"Student, Test",999,,f00,One,,
"""
MOODLE = """\
Identifier,Full name,Email address,Status,Grade,Maximum Grade,Last modified (submission),Feedback comments
Participant 17,Aya Ito,aya@example.org,Submitted for grading,,"20,00",-,
Participant 18,Bo Berg,bo@example.org,No submission,,"20,00",-,
Participant 19,Bo Berg,other.bo@example.org,No submission,,"20,00",-,
"""
PLAIN = "student,name,email\naya,Aya Ito,aya@example.org\nbo,Bo Berg,bo@example.org\n"


@pytest.fixture
def roster(tmp_path: Path, request: pytest.FixtureRequest) -> rosters.Roster:
    path = tmp_path / "roster.csv"
    path.write_text(getattr(request, "param", CANVAS), encoding="utf-8-sig")
    return rosters.read(path)


def zipped(folder: Path, **members: bytes) -> Path:
    """An archive; `__` in a keyword stands for a folder."""
    path = folder / "submissions.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.ipynb", data)
    return path


def taken(result: Collected) -> list[str]:
    return [student for student, _ in result.new]


def get(archive: Path, roster: rosters.Roster, folder: Path, **more: object) -> Collected:
    return collect([archive], roster, folder / "submitted", kept=folder / "replaced", **more)  # type: ignore[arg-type]


def test_a_download_from_canvas_goes_to_the_students_whose_numbers_it_names(
    roster: rosters.Roster, tmp_path: Path
) -> None:
    archive = zipped(tmp_path, **{f"itoaya_101_9001_{NAME}": NOTEBOOK, "bergbo_LATE_102_9002_my work-1": NOTEBOOK})
    result = get(archive, roster, tmp_path)
    assert sorted(taken(result)) == ["aya", "bo"]
    assert result.late == [("bo", NAME)]
    assert (tmp_path / "submitted/aya" / NAME / f"{NAME}.ipynb").read_bytes() == NOTEBOOK
    assert not result.asked
    assert not result.troubles


@pytest.mark.parametrize("roster", [MOODLE], indirect=True)
@pytest.mark.parametrize("label", ["Aya Ito_17_assignsubmission_file_/x", f"Aya Ito_17_assignsubmission_file_{NAME}"])
def test_a_download_from_moodle_comes_in_folders_or_flat(roster: rosters.Roster, tmp_path: Path, label: str) -> None:
    result = get(
        zipped(tmp_path, **{label: NOTEBOOK, "Bo Berg_18_assignsubmission_file_/x": NOTEBOOK}), roster, tmp_path
    )
    assert sorted(taken(result)) == ["aya@example.org", "bo@example.org"]


@pytest.mark.parametrize("roster", [PLAIN], indirect=True)
@pytest.mark.parametrize("label", ["aya", "AYA@example.org", "Aya Ito", f"aya@example.org-{NAME}", f"Aya Ito_{NAME}"])
def test_a_plain_name_is_whatever_the_roster_has_for_it(roster: rosters.Roster, tmp_path: Path, label: str) -> None:
    result = get(zipped(tmp_path, **{label: NOTEBOOK, "bo/work": NOTEBOOK}), roster, tmp_path)
    assert sorted(taken(result)) == ["aya", "bo"]


@pytest.mark.parametrize(
    ("roster", "label", "why"),
    [
        (CANVAS, f"someone_555_9001_{NAME}", "is not in the roster"),
        (CANVAS, "ay", "is not in the roster"),
        (CANVAS, "Aya Ito_17_assignsubmission_file_x", "give Moodle's grading worksheet as the roster"),
        (MOODLE, f"itoaya_101_9001_{NAME}", "give the gradebook that Canvas exports as the roster"),
        (MOODLE, "Bo Berg", "could be bo@example.org or other.bo@example.org"),
        (MOODLE, "Aya Ito_17_assignsubmission_file_18_assignsubmission_file_x", "can be read in two ways"),
        (MOODLE, "Eve_18_assignsubmission_file_/Aya_17_assignsubmission_file_x", ""),
        (PLAIN, "student-aya", "is not in the roster"),
    ],
    indirect=["roster"],
)
def test_whoever_is_not_certain_is_asked_about(roster: rosters.Roster, tmp_path: Path, label: str, why: str) -> None:
    """A file's name is the student's to choose: it makes nobody somebody else."""
    result = get(zipped(tmp_path, **{label: NOTEBOOK, "zz": NOTEBOOK}), roster, tmp_path)
    if why:
        assert why in result.asked[label]
        assert not result.new
    else:
        assert taken(result) == ["bo@example.org"], "the outer folder is Moodle's, what is in it the student's"


def test_a_canvas_name_that_borrows_a_number_is_still_its_owners(roster: rosters.Roster, tmp_path: Path) -> None:
    result = get(zipped(tmp_path, **{"bergbo_102_9002_itoaya_101_9001_x": NOTEBOOK}), roster, tmp_path)
    assert taken(result) == ["bo"]


def test_what_a_person_decided_is_done(roster: rosters.Roster, tmp_path: Path) -> None:
    archive = zipped(tmp_path, **{"final version": NOTEBOOK, "scratch": NOTEBOOK})
    table = tmp_path / "who-is-it.csv"
    options = ["collect", str(archive), "--roster", str(roster.sheet.path), "--table", str(table)]
    options += ["--into", str(tmp_path / "submitted")]
    asked = CliRunner().invoke(app, options)
    assert asked.exit_code == 1
    assert "“final version” is not in the roster." in asked.stderr
    text = table.read_text().replace("final version,,", "final version,aya,").replace("scratch,,", "scratch,-,")
    table.write_text(text)
    assert decisions(table, roster) == {"final version": "aya", "scratch": ""}
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "1 new" in done.output
    table.write_text(text.replace("aya", "nobody"))
    with pytest.raises(RosterError, match="gives “final version” to nobody, who is not in the roster"):
        decisions(table, roster)


def test_a_replaced_notebook_is_kept_and_an_equal_one_is_left_alone(roster: rosters.Roster, tmp_path: Path) -> None:
    label, later = f"itoaya_101_9001_{NAME}", NOTEBOOK.replace(b"\n", b"\n ", 1)
    assert get(zipped(tmp_path, **{label: NOTEBOOK}), roster, tmp_path).new
    assert get(zipped(tmp_path, **{label: NOTEBOOK}), roster, tmp_path).as_before == [("aya", NAME)]
    assert get(zipped(tmp_path, **{label: later}), roster, tmp_path).replaced == [("aya", NAME)]
    (kept,) = (tmp_path / "replaced").rglob("*.ipynb")
    assert kept.read_bytes() == NOTEBOOK
    assert (tmp_path / "submitted/aya" / NAME / f"{NAME}.ipynb").read_bytes() == later


def test_of_two_different_notebooks_neither_is_chosen(roster: rosters.Roster, tmp_path: Path) -> None:
    members = {f"itoaya_101_9001_{NAME}": NOTEBOOK, f"itoaya_101_9001_{NAME}-1": NOTEBOOK + b"\n"}
    result = get(zipped(tmp_path, **members), roster, tmp_path)
    assert not result.new
    assert "aya has handed in 2 different notebooks" in result.troubles[0]


def test_a_hostile_archive_harms_nobody(roster: rosters.Roster, tmp_path: Path) -> None:
    members = {"../../itoaya_101_9001_x": NOTEBOOK, f"bergbo_102_9002_{NAME}": NOTEBOOK, "itoaya_101_9_y": b"{"}
    result = get(zipped(tmp_path, **members), roster, tmp_path)
    assert taken(result) == ["bo"]
    assert len(result.troubles) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"roster.csv", "submissions.zip", "submitted"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not a table of comma-separated values"),
        ("a,b\n1,2\n", "is no roster"),
        ("student,student\na,b\n", "two columns of one name"),
        ("student\nada\nada\n", "more than once"),
        ("student\nada\nAda\n", "could be taken for"),
        ("student,x\n,1\n", "has nothing in its column"),
        ("student\n../etc\n", "cannot name a folder"),
        ('student\n"x\n', "not a table"),
    ],
)
def test_a_roster_that_is_none_is_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "roster.csv"
    path.write_text(text)
    with pytest.raises(RosterError, match=sentence):
        rosters.read(path)


# -- marks go back --------------------------------------------------------------------------------------------------


@pytest.fixture
def gradebook(tmp_path: Path) -> Gradebook:
    """Aya has 12.5 of 20 points, Bo handed in nothing, and Eve is in no roster."""
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as found:
        found.add_assignment(NAME)
        found.add_notebook("work", NAME)
        found.add_grade_cell("check", "work", NAME, max_score=20, cell_type="code")
        for student, score in (("aya", 12.5), ("aya@example.org", 12.5), ("eve", 1)):
            found.add_student(student)
            found.add_submission(NAME, student)
            found.find_grade("check", "work", NAME, student).auto_score = score
        found.add_student("bo")
        found.db.commit()
        yield found


def exported(plugin: type, gradebook: Gradebook, folder: Path, text: str, **more: object) -> list[dict[str, str]]:
    given, to = folder / "given.csv", folder / "marks.csv"
    given.write_text(text, encoding="utf-8-sig")
    config = Config({plugin.__name__: {"roster": str(given), "to": str(to), **more}})
    log = logging.getLogger(__name__)  # by default that of the application, if another test has begun one
    plugin(config=config, log=log).export(gradebook)
    with to.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_canvas_gets_its_own_rows_back_with_marks(gradebook: Gradebook, tmp_path: Path) -> None:
    column = "02-self-attention (4711)"
    rows = exported(CanvasExport, gradebook, tmp_path, CANVAS)
    assert [row["Student"].strip() for row in rows] == ["Points Possible", "Ito, Aya", "Berg, Bo", "Student, Test"]
    assert [row[column] for row in rows] == ["20", "12.5", "", ""]
    assert list(rows[0]) == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", column]
    again = rosters.read(tmp_path / "marks.csv")
    assert again.students == {0: "aya", 1: "bo"}, "Canvas's own export and ours are the same kind of file"


def test_canvas_gets_a_new_column_where_it_has_none(gradebook: Gradebook, tmp_path: Path) -> None:
    text = "\n".join(
        ",".join(line.split(",")[:5]) for line in CANVAS.replace('"Ito, Aya"', "Aya Ito").splitlines()[::2]
    )
    rows = exported(CanvasExport, gradebook, tmp_path, text.replace('"Student, Test"', "x"))
    assert [row[NAME] for row in rows][:2] == ["20", "12.5"]


def test_moodle_gets_its_worksheet_back_with_grades(gradebook: Gradebook, tmp_path: Path) -> None:
    rows = exported(MoodleExport, gradebook, tmp_path, MOODLE, assignment=[NAME])
    assert [row["Grade"] for row in rows] == ["12.5", "", ""]
    assert [row["Identifier"] for row in rows] == ["Participant 17", "Participant 18", "Participant 19"]
    assert list(rows[0]) == MOODLE.splitlines()[0].split(",")


def test_moodles_other_maximum_is_not_passed_over(gradebook: Gradebook, tmp_path: Path) -> None:
    other = MOODLE.replace('"20,00"', "100.00")
    with pytest.raises(ExportError, match=r"has 20 points, and in Moodle the maximum grade is 100"):
        exported(MoodleExport, gradebook, tmp_path, other)
    rows = exported(MoodleExport, gradebook, tmp_path, other, scale=True)
    assert rows[0]["Grade"] == "62.5"


def test_whoever_has_marks_and_no_row_is_told(
    gradebook: Gradebook, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exported(CanvasExport, gradebook, tmp_path, CANVAS)
    told = (tmp_path / "marks-look-at.csv").read_text()
    assert "eve,,has marks and is not in the roster" in told
    assert "(lines: 3)" in caplog.text
    assert re.search(r"\beve\b", caplog.text) is None, "a log may be read by others"


def test_a_late_penalty_is_taken_off(gradebook: Gradebook, tmp_path: Path) -> None:
    gradebook.find_submission_notebook("work", NAME, "aya").late_submission_penalty = 2
    gradebook.db.commit()
    rows = exported(CanvasExport, gradebook, tmp_path, CANVAS)
    assert rows[1]["02-self-attention (4711)"] == "10.5"


@pytest.mark.parametrize(
    ("plugin", "text", "more", "sentence"),
    [
        (CanvasExport, MOODLE, {}, "is not a file of Canvas's"),
        (CanvasExport, CANVAS, {"assignment": ["99-x"]}, "has no assignment '99-x'"),
        (CanvasExport, "x\n", {}, "is no roster"),
    ],
)
def test_what_is_wrong_with_an_export_is_said(
    gradebook: Gradebook, tmp_path: Path, plugin: type, text: str, more: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        exported(plugin, gradebook, tmp_path, text, **more)
    assert not (tmp_path / "marks.csv").exists()
