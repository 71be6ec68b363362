"""Makes this folder an ordinary nbgrader course whose notebooks are graded in our sandbox instead of a Jupyter kernel.

Students' work goes into submitted/<student>/<assignment>/. As long as there is no folder `submitted`, the class is the
bundled sample.
"""

import sys
from pathlib import Path

c = get_config()
root = Path(__file__).resolve().parent

try:
    from autograder.course import Course

    course = Course(root).settings
except Exception as error:
    # after an error in this file nbgrader would go on without it, and run what students wrote in a kernel
    print(error, file=sys.stderr)
    sys.exit(2)

if (root / "submitted").is_dir():
    submitted, generated = "submitted", ""
else:
    submitted, generated = "examples/class", "_build/class/"
    (root / generated).mkdir(parents=True, exist_ok=True)

c.CourseDirectory.root = str(root)
c.CourseDirectory.course_id = course.course_id
c.CourseDirectory.source_directory = "_build/nbgrader/source"
c.CourseDirectory.release_directory = "notebooks"
c.CourseDirectory.submitted_directory = submitted
c.CourseDirectory.autograded_directory = f"{generated}autograded"
c.CourseDirectory.feedback_directory = f"{generated}feedback"
c.CourseDirectory.db_url = course.gradebook or f"sqlite:///{root / generated / 'gradebook.db'}"

# nbgrader's own exchange follows students' links and only warns of work in another's name: docs/staff.md
c.ExchangeFactory.collect = "autograder.exchange.Collect"
c.ExchangeFactory.release_assignment = "autograder.exchange.ReleaseAssignment"
c.ExchangeFactory.release_feedback = "autograder.exchange.ReleaseFeedback"
if course.exchange:
    c.Exchange.root = course.exchange

c.Autograde.exporter_class = "autograder.gradebook.SubmissionExporter"
c.Autograde.sanitize_preprocessors = ["autograder.gradebook.Sanitise", "nbgrader.preprocessors.CheckCellMetadata"]
c.Autograde.autograde_preprocessors = [
    "autograder.gradebook.SaveReport",
    "autograder.gradebook.Penalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
# What late work costs stands in course.toml; without that, nothing.
c.AssignLatePenalties.plugin_class = "autograder.gradebook.CoursePenalty"

# nbgrader's own unpack what students packed with their hands, and believe what a file is called.
c.ZipCollectApp.extractor_plugin = "autograder.zipcollect.RosterExtractor"
c.ZipCollectApp.collector_plugin = "autograder.zipcollect.RosterCollector"

# nbgrader's own templates print a student's Markdown as it is, whatever sanitize_html says.
c.HTMLExporter.filters = {"markdown2html": "autograder.gradebook.safe_markdown"}
c.HTMLExporter.sanitize_html = True
c.HTMLExporter.preprocessors = ["autograder.gradebook.escape_names"]  # nor does it escape what a student is called
