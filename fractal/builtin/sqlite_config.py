"""Configuration of the `sqlite` coordination backend. Light: read by the command line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class SqliteConfig:
    """One ordered log per group, all in one file that the agents of one machine share."""

    path: str = field(
        default="",
        metadata={
            "help": "Absolute path of the log file, the same for every agent of this machine. Empty: a file of this agent alone."
        },
    )
    timeout: float = field(
        default=5.0,
        metadata={"help": "Seconds to wait for another process that holds the file before giving up."},
    )
