"""A simulator that runs the real agent and the real core: many devices, one virtual clock, one seed."""
