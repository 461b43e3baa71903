"""An agent that gives an app 4 s to get healthy, where two minutes are usual: a test cannot wait so long."""

import sys

if sys.orig_argv[-2:] == ["agent", "run"]:
    from fractal.agent import app_job

    app_job.START_LIMIT = 4.0
