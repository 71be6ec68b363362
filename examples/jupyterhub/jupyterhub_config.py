"""JupyterHub for this course on one machine. How to set it up, and who may do what there: docs/staff.md.

Students get a server each, as themselves. Staff share one, which runs in the course's folder as the account that owns
it; JupyterHub lets nobody else in.
"""

import grp
import os
import pwd
from pathlib import Path

from jupyterhub.spawner import Spawner

c = get_config()

COURSE = Path("/srv/ichimon")  # the checkout, with its .venv: its owner's alone (chmod 700)
GRADER = "ichimon-grader"  # that owner: the account of the gradebook and the exchange, to which nobody logs in
STAFF = "ichimon-staff"  # the system's group of those who teach
STUDENTS = "ichimon-students"  # and of those who learn
STATE = Path("/var/lib/jupyterhub")  # the Hub's database and keys, which are root's alone
HERE = Path(__file__).resolve().parent

STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
STATE.chmod(0o700)
c.JupyterHub.db_url = f"sqlite:///{STATE}/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = str(STATE / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(STATE / "proxy.pid")
c.JupyterHub.bind_url = "http://127.0.0.1:8000"  # for a web server with TLS in front
c.JupyterHub.authenticator_class = "pam"
c.PAMAuthenticator.allowed_groups = {STAFF, STUDENTS}

# -- students -------------------------------------------------------------------------------------------------------


def keep_home_private(spawner: Spawner) -> None:
    """A home holds the student's work, and the secrets by which nbgrader finds their feedback."""
    account = pwd.getpwnam(spawner.user.name)
    home = os.open(account.pw_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    if os.fstat(home).st_uid == account.pw_uid:
        os.fchmod(home, 0o700)
    os.close(home)


c.Spawner.pre_spawn_hook = keep_home_private
c.Spawner.default_url = "/lab"
c.Spawner.environment = {"JUPYTER_CONFIG_PATH": str(HERE / "student")}  # the pages of nbgrader that a student needs

# -- staff ----------------------------------------------------------------------------------------------------------

c.JupyterHub.services = [
    {
        "name": "ichimon",
        "url": "http://127.0.0.1:9999",
        "command": [str(COURSE / ".venv/bin/python"), "-m", "jupyterhub.singleuser"],
        "user": GRADER,
        "cwd": str(COURSE),
        "environment": {"JUPYTERHUB_DEFAULT_URL": "/formgrader", "OMP_NUM_THREADS": "1"},
        "oauth_no_confirm": True,
    }
]
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self"]},  # a service is nobody's by default
    {
        "name": "staff",
        "scopes": ["access:services!service=ichimon"],
        # by name and not by a group of JupyterHub, which keeps whom the list no longer has
        "users": [name for name in grp.getgrnam(STAFF).gr_mem if name != GRADER],
    },
]
