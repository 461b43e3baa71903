"""`python -m fractal.demo`: set the scene, play the acts, print what was measured, leave nothing running."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from fractal.demo.acts import Demo
from fractal.demo.devices import DemoFailed


def main() -> int:
    """Exit code 0 if every promise held."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path(".demo/run"), help="where everything of the demo lives"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the folder (never the processes) for a look"
    )
    parser.add_argument("--acts", default="123", help="which acts to play, e.g. 1; the scene is always set")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    demo = Demo(folder, began=time.monotonic())
    try:
        demo.set_scene()
        for number in options.acts:
            demo.play(int(number))
        demo.look_for_canary()
    except (DemoFailed, OSError) as error:
        demo.break_promise(str(error))
    except KeyboardInterrupt:
        demo.break_promise("interrupted")
    finally:
        demo.end()
    demo.report()
    if demo.broken:
        print(f"What the agents logged is below {folder}/*/agent.log", file=sys.stderr)
        return 1
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
