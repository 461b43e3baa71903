"""Settings of the `process` runtime."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig:
    """`[runtime.process]`."""

    python: str = field(
        default="",
        metadata={"help": "Interpreter for apps' Python environments. Default: the one that runs the agent."},
    )
    envs: str = field(
        default="",
        metadata={
            "help": "Folder of Python environments, one per set of requirements; several agents of one user may share it. "
            "Default: `envs` in the runtime's state folder."
        },
    )
    wheels: str = field(
        default="",
        metadata={
            "help": "Folder of wheels to install requirements from. If set, no package index is asked."
        },
    )
    source_builds: bool = field(
        default=False,
        metadata={
            "help": "Also install requirements that come as source only, which runs their build scripts."
        },
    )
    prepare_timeout: float = field(
        default=900.0, metadata={"help": "Seconds after which installing requirements is given up."}
    )
    first_port: int = field(
        default=20000, metadata={"help": "Services listen on loopback ports from here ..."}
    )
    last_port: int = field(
        default=32000, metadata={"help": "... up to here. Keep them outside the ephemeral range."}
    )
    log_bytes: int = field(
        default=4 << 20,
        metadata={"help": "Size at which a service's log is rotated; one older file is kept."},
    )
