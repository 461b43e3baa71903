"""`python -m fractal.demo`: set the scene, play the acts, print what was measured, leave nothing running."""

from __future__ import annotations

import argparse
import http.client
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from fractal.demo.acts import Demo
from fractal.demo.devices import DemoFailed
from fractal.demo.marks import Ground, NotOurs

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Told(BaseException):
    """The demo was told to end. Not an Exception, so that nothing on the way takes it for a failure of its own."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def main() -> int:
    """Exit code 0 if every promise held, 2 if the demo cannot begin, 128 and the signal's number if one ended it."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(".demo/run"),
        help="where everything of the demo lives: new, empty, or an earlier demo's, which is removed",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the folder (never the processes) for a look"
    )
    parser.add_argument("--acts", default="123", help="which acts to play, e.g. 1; the scene is always set")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        print(
            f"The demo, as every device that runs apps, needs Linux; this is {sys.platform}.", file=sys.stderr
        )
        return 2
    if unknown := set(options.acts) - set("123"):
        parser.error(f"--acts {options.acts}: no act {', '.join(sorted(unknown))}; there are 1, 2 and 3")
    ground = Ground(options.folder.absolute())
    try:
        ground.take()
    except (NotOurs, OSError) as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 2
    if ground.ended:
        print(f"Ended {ground.ended} processes that an earlier demo had left in {ground.folder}.")
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _tell)
    demo = Demo(ground.folder, ground.word, began=time.monotonic())
    code = play(demo, options.acts)
    if demo.broken:
        print(f"What the agents logged is below {ground.folder}/*/agent.log", file=sys.stderr)
    ground.leave(keep=options.keep or bool(demo.broken))
    return code


def play(demo: Demo, acts: str) -> int:
    """Play, end everything, tell; the exit code."""
    told = 0
    try:
        demo.set_scene()
        for act in acts:
            demo.play(int(act))
        demo.look_for_canary()
    except (DemoFailed, OSError, http.client.HTTPException) as error:
        demo.break_promise(str(error) or type(error).__name__)
    except (LookupError, ValueError, AssertionError, subprocess.SubprocessError) as error:
        demo.break_promise(f"the demo itself failed: {in_words(error)}")
    except Told as error:
        told = error.number
        demo.break_promise(f"ended by {error}")
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # it ends as fast as it can, and leaves nothing
        demo.end()
    demo.report()
    return 128 + told if told else int(bool(demo.broken))


def in_words(error: Exception) -> str:
    """What went wrong, and where."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(at.filename).name}:{at.lineno}, {at.name})"


def _tell(number: int, _: FrameType | None) -> None:
    raise Told(number)


if __name__ == "__main__":
    sys.exit(main())
