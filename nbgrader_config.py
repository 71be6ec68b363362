"""Makes this folder an ordinary nbgrader course whose notebooks are graded in our sandbox instead of a Jupyter kernel.

Students' work goes into submitted/<student>/<assignment>/. As long as there is no folder `submitted`, the class is the
bundled sample.
"""

from pathlib import Path

c = get_config()
root = Path(__file__).resolve().parent

if (root / "submitted").is_dir():
    submitted, generated = "submitted", ""
else:
    submitted, generated = "examples/class", "_build/class/"
    (root / generated).mkdir(parents=True, exist_ok=True)

c.CourseDirectory.root = str(root)
c.CourseDirectory.source_directory = "_build/nbgrader/source"
c.CourseDirectory.release_directory = "notebooks"
c.CourseDirectory.submitted_directory = submitted
c.CourseDirectory.autograded_directory = f"{generated}autograded"
c.CourseDirectory.feedback_directory = f"{generated}feedback"
c.CourseDirectory.db_url = f"sqlite:///{root / generated / 'gradebook.db'}"

c.Autograde.exporter_class = "autograder.gradebook.SubmissionExporter"
c.Autograde.sanitize_preprocessors = ["autograder.gradebook.Sanitise", "nbgrader.preprocessors.CheckCellMetadata"]
c.Autograde.autograde_preprocessors = [
    "autograder.gradebook.SaveReport",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]

# nbgrader's own templates print a student's Markdown as it is, whatever sanitize_html says.
c.HTMLExporter.filters = {"markdown2html": "autograder.gradebook.safe_markdown"}
c.HTMLExporter.sanitize_html = True
c.HTMLExporter.preprocessors = ["autograder.gradebook.escape_names"]  # nor does it escape what a student is called
