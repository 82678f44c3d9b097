"""Where the command starts: `posthoc`, and `python -m posthoc` where its script is not on the path."""

import os
import sys


def drop_working_directory() -> None:
    """Take the working directory off `sys.path`, where `-m`, or an empty component of PYTHONPATH, put it.

    It is a folder of data, and a `click.py` in it is not for us to run. A folder that PYTHONPATH names stays. What this
    process starts inherits a PYTHONPATH without empty components.
    """
    try:
        here = os.getcwd()  # noqa: PTH109 (pathlib is not imported yet, and a file of that name might be)
    except OSError:  # it was removed
        here = ""
    places = {"", here}
    if __name__ == "__main__" and not sys.flags.safe_path and sys.path[0] in places:
        del sys.path[0]
    given = os.environ.get("PYTHONPATH", "")
    named = [place for place in given.split(os.pathsep) if place]
    if given and named != given.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
        if not sys.flags.ignore_environment and here not in map(os.path.abspath, named):
            sys.path[:] = [place for place in sys.path if place not in places]


drop_working_directory()

from posthoc.cli import main  # noqa: E402 (nothing may be imported before)

if __name__ == "__main__":
    main(prog_name="posthoc")
