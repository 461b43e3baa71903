"""The outermost shell: the real clock, randomness, threads, processes and files that the agent is given."""
