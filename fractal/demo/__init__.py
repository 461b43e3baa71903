"""`make demo`: three devices on this machine, a real application, real faults, and what a client saw of them."""
