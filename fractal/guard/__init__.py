"""The guard: a small process that holds deadlines, freezes apps by itself when proof runs out, and alone may thaw them.

Three kinds of process, each a subreaper, so that no descendant of a service is ever lost:

    undertaker          started first; kills everything below it when the guard dies
      guard             the socket, the deadlines, freezing and thawing
        keeper          one per run; parent of the run's services; kills them when the guard dies
          service ...   and whatever it forks, however often it detaches

A run is frozen by SIGSTOP to the whole tree below its keeper, or by its cgroup (v1 or v2) if a container engine runs it.
Nothing here imports more than the standard library; `client` and `launch` are the agent's side.
"""
