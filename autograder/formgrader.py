"""nbgrader's pages in JupyterLab: how they are started, and the server extension that stands in for nbgrader's own.

It is nbgrader's formgrader, except that what a student can choose (a name, a folder, a notebook) runs nothing in the
instructor's browser or server, that grading leaves the other pages usable, and that failures are sentences.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import sys
from asyncio import get_running_loop
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from jinja2 import Environment, FileSystemLoader
from jupyter_server.serverapp import ServerApp
from markupsafe import Markup
from nbgrader.apps import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from nbgrader.server_extensions.formgrader import apihandlers, handlers
from nbgrader.server_extensions.formgrader.base import check_notebook_dir, check_xsrf
from nbgrader.server_extensions.formgrader.formgrader import FormgradeExtension
from tornado import web
from tornado.log import app_log

from autograder.gradebook import GradebookError, _sentences, course_config, register
from autograder.sandbox.jail import JailError, bubblewrap

EXTENSIONS = {"nbgrader.server_extensions.formgrader": False, "autograder.formgrader": True}

# -- the command ----------------------------------------------------------------------------------------------------


def prepare(port: int, course: Path) -> list[str]:
    """Make the course's assignments known to its gradebook; return what an instructor should know before the start."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("127.0.0.1", port))
        except OSError as error:
            raise GradebookError(
                f"Port {port} cannot be used ({error.strerror}): name another one, as in `make instructor PORT=8899`."
            ) from None
    there = CourseDirectory(config=course_config(course))
    told = []
    sources = sorted((course / there.source_directory).glob("*/*.ipynb"))  # the assignments that nbgrader lists
    if not sources:
        told.append(f"There is no notebook in {there.source_directory}, so no assignment: run `make notebooks`.")
    with _sentences(there.db_url):
        for source in sources:
            register(source.stem, there)
    submitted = course / there.submitted_directory
    if not any(submitted.glob("*/*/*.ipynb")):
        told.append(
            f"Nobody has handed in anything yet: {there.submitted_directory}/<student>/<assignment>/<assignment>.ipynb "
            "is where it belongs, and `autograder collect` puts it there."
        )
    try:
        bubblewrap()
    except JailError as error:
        told.append(f"The buttons that grade will not work on this machine. {error}")
    return told


def start(port: int, course: Path) -> NoReturn:
    """Become JupyterLab. Who opens it needs a token, which is in the environment because everybody sees arguments."""
    command = command_line(port, course)
    os.execve(command[0], command, {"JUPYTER_TOKEN": secrets.token_hex(24), **os.environ})


def command_line(port: int, course: Path) -> list[str]:
    """JupyterLab for this course, on this machine alone, with the extension below in the place of nbgrader's."""
    options = {
        "ServerApp.root_dir": str(course),
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": str(port),
        "ServerApp.port_retries": "0",
        "ServerApp.open_browser": "False",
        "ServerApp.answer_yes": "True",  # Ctrl-C ends it and does not ask
        "ServerApp.jpserver_extensions": repr(EXTENSIONS),
        "Application.log_level": "ERROR",
    }
    root = ["--allow-root"] if os.geteuid() == 0 else []
    return [sys.executable, "-m", "jupyterlab", *root, *(f"--{name}={value}" for name, value in options.items())]


# -- the server extension -------------------------------------------------------------------------------------------


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "autograder.formgrader"}]


def _load_jupyter_server_extension(server: ServerApp) -> None:
    formgrader = Formgrader(parent=server)
    formgrader.root_dir = server.root_dir
    formgrader.log = server.log
    for log in (server.log, app_log):
        log.addFilter(_in_words)
    formgrader.initialize([])
    formgrader.init_tornado_settings(server.web_app)
    formgrader.init_handlers(server.web_app)


async def _start_jupyter_server_extension(server: ServerApp) -> None:
    base, token = server.local_url.partition("/lab")[0], server.identity_provider.token
    print(
        f"""nbgrader's pages are ready, for this machine alone:

    {base}/lab?token={token}

Open that address, then Nbgrader > Formgrader in JupyterLab's menu. Click the number under "# Submissions" to see who
handed in, the flash to grade one of them, and Manual Grading to read the work and give marks yourself.
The same pages without JupyterLab: {base}/formgrader?token={token}
Ctrl-C ends it.""",
        flush=True,
    )


class Formgrader(FormgradeExtension):
    """nbgrader's formgrader with the handlers and the environment of templates of this file."""

    def init_tornado_settings(self, webapp: web.Application) -> None:
        self.debug = False  # the page would show the whole configuration, a database's password too
        super().init_tornado_settings(webapp)
        webapp.settings["nbgrader_jinja2_env"] = Environment(
            loader=FileSystemLoader([handlers.template_path]), autoescape=True, finalize=_shown
        )

    def init_handlers(self, webapp: web.Application) -> None:
        base = webapp.settings["base_url"].rstrip("/")
        api = f"{base}/formgrader/api"
        feedback = {"action": "generate_feedback"}
        ours = [
            web.url(f"{base}/formgrader/?", Start),
            web.url(f"{api}/submission/([^/]+)/([^/]+)/autograde", InTurn, {"action": "autograde"}),
            web.url(f"{api}/assignment/([^/]+)/generate_feedback", InTurn, feedback),
            web.url(f"{api}/assignment/([^/]+)/([^/]+)/generate_feedback", InTurn, feedback),
        ]
        webapp.add_handlers(".*$", ours)  # the first that fits answers
        super().init_handlers(webapp)


def _shown(value: object) -> Markup:
    """A value on a page of nbgrader's, whose templates put it into text, into attributes and into strings of scripts.

    So that a name such as O'Neill stays what it is for a script, only what could end its place there is changed.
    """
    if isinstance(value, Markup):
        return value
    return Markup(str(value).translate({ord(sign): f"&#{ord(sign)};" for sign in '<>"\\'}))


class Start(handlers.BaseHandler):
    """The way in. nbgrader's takes a folder, and runs whatever nbgrader_config.py lies there."""

    @web.authenticated
    @check_xsrf
    def get(self) -> None:
        self.redirect(f"{self.base_url}/formgrader/manage_assignments")


_turns = ThreadPoolExecutor(1, "formgrader")  # nbgrader's own handlers would stop the whole server


class InTurn(apihandlers.BaseApiHandler):
    """The buttons that take long, to grade and to write feedback: one at a time, beside all other pages."""

    def initialize(self, action: str) -> None:
        self.action = action

    @web.authenticated
    @check_xsrf
    @check_notebook_dir
    async def post(self, assignment: str, student: str | None = None) -> None:
        app = self.settings["nbgrader_formgrader"]
        api = NbGraderAPI(CourseDirectory(parent=app), self.authenticator, parent=app)  # others go on using theirs
        done = await get_running_loop().run_in_executor(_turns, getattr(api, self.action), assignment, student)
        logged = re.split(r"\n(?=\[[A-Z]+\] )", done.pop("log", "").strip())  # by other requests too
        said = [record for record in logged if record.startswith("[ERROR]")]
        if error := done.pop("error", ""):
            said = said or [_sentence(error)]
        self.write(json.dumps({**done, "log": "\n".join(said)}))


# What nbgrader logs and nobody here can use: about its exchange, about what is left out below, about its page for 404.
_NOISE = (
    "Unwritable directory, please contact",
    "Please see the the above traceback",
    "Uncaught exception in write_err",
)


def _in_words(record: logging.LogRecord) -> bool:
    """The last line of a traceback in its place: nbgrader logs whole ones, which its pages and the terminal show."""
    said = record.getMessage()
    if said.startswith("Traceback (most recent call last)"):
        record.msg, record.args = _sentence(said), ()
    return not said.startswith(_NOISE)


def _sentence(traceback: str) -> str:
    """`autograder.sandbox.jail.JailError: The grader needs …` without the name of an error that is ours."""
    return re.sub(r"^autograder\.[\w.]+: ", "", traceback.strip().rpartition("\n")[2])
