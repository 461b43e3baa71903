"""How long the command line takes to start, as a ratio to `python -c "import click"` on the same machine. Goal: at most 2.

    python contrib/bench/startup.py [RUNS]

The kinds of run alternate, so that a busy moment hits all alike; the minimum of each is compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fractal.testing.control import serving_samples

GOAL = 2.0
MAIN = "from fractal.cli.main import main; main()"


def measure(runs: int, kinds: dict[str, list[str]], env: dict[str, str]) -> dict[str, float]:
    """Least seconds of each kind."""
    best = dict.fromkeys(kinds, float("inf"))
    for _ in range(runs):
        for name, argv in kinds.items():
            begun = time.perf_counter()
            subprocess.run(argv, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            best[name] = min(best[name], time.perf_counter() - begun)
    return best


def main() -> int:
    """Print a table; 1 if the goal is missed."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 25
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = folder / "config.toml"
        config.write_text(
            f'schema = 1\n[device]\nname = "Bench"\nstate_dir = "{folder}"\nruntime_dir = "{folder}"\n'
        )
        env = {**os.environ, "XDG_CACHE_HOME": name}
        python = [sys.executable, "-c"]
        kinds = {
            "import click": [*python, "import click"],
            "homeserver --help": [*python, MAIN, "--help"],
            "homeserver status": [*python, MAIN, "--config", str(config), "status"],
        }
        with serving_samples(folder / "control.sock"):
            measure(1, kinds, env)
            best = measure(runs, kinds, env)
    base = best["import click"]
    print(f"{'':20} {'ms':>7} {'ratio':>6}   goal")
    for kind, seconds in best.items():
        goal = "" if kind == "import click" else f"<= {GOAL:g}"
        print(f"{kind:20} {seconds * 1000:7.1f} {seconds / base:6.2f}   {goal}".rstrip())
    return int(max(best.values()) > GOAL * base)


if __name__ == "__main__":
    sys.exit(main())
