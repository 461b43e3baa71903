"""Checkpoints of a group's log: the folded state, sealed to the group key, in one of the group's stores.

A device states a checkpoint's hash in the log (`log.checkpointed`); who joins fetches the object, compares the hash, and
lets its journal begin there (`Journal.adopt`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress

from fractal.agent.journal import Journal
from fractal.api.context import Entropy
from fractal.api.errors import Conflict, Corrupt, Denied
from fractal.api.store import Store
from fractal.core.entries import Checkpointed
from fractal.core.log import MAX_STATE, checkpoint_bytes, state_hash
from fractal.core.model import GroupState
from fractal.crypto.keys import statement
from fractal.crypto.seal import open_group, seal_group

MAGIC = b"fhs-checkpoint/1\n"
MIN_ENTRIES = 1_000
"""Entries since the last checkpoint that make another one worth its entry."""
_GENERATION_SIZE = 4


def due(state: GroupState) -> bool:
    """Whether enough was written since the last checkpoint, and the log can be read to its end."""
    last = state.checkpoint.position if state.checkpoint else 0
    return not (state.sealed_out or state.left) and state.position - last >= MIN_ENTRIES


async def write_checkpoint(journal: Journal, store: Store, store_id: str, entropy: Entropy) -> int:
    """Put the present state into the store and state it in the log; the entry's position.

    Raises Denied unless this device's member is an admin, BackendError, and what `Journal.append` raises. An object
    without an entry is harmless: nobody looks for it.
    """
    state = journal.state
    generation, group_key = journal.group_key()
    stated = state_hash(state)
    key = f"{state.id}/checkpoint/{state.position}-{stated.hex()[:16]}"
    header = MAGIC + generation.to_bytes(_GENERATION_SIZE, "big")
    plain = zlib.compress(checkpoint_bytes(state), 6)
    # A conflict means same position and hash: another device put the same state there.
    with suppress(Conflict):
        await store.put_new(key, header + seal_group(plain, group_key, _aad(state.id, header), entropy))
    entry = Checkpointed(position=state.position, state_hash=stated, store=store_id, key=key)

    def newest(latest: GroupState) -> bool:
        return latest.checkpoint is None or latest.checkpoint.position < entry.position

    return await journal.append(entry, wanted=newest)


async def fetch_checkpoint(
    store: Store, key: str, *, group: str, group_key: Callable[[int], bytes | None] | Mapping[int, bytes]
) -> bytes:
    """The checkpoint's bytes for `Journal.adopt`, which compares their hash with the stated one.

    Raises Corrupt if the object is damaged or foreign, Denied without its group key, NotFound, BackendError.
    """
    chunks = []
    size = 0
    async for chunk in store.get(key):
        size += len(chunk)
        if size > MAX_STATE:
            raise Corrupt(f"checkpoint {key} is larger than {MAX_STATE} bytes: replay the log instead")
        chunks.append(chunk)
    data = b"".join(chunks)
    header, sealed = data[: len(MAGIC) + _GENERATION_SIZE], data[len(MAGIC) + _GENERATION_SIZE :]
    if len(header) < len(MAGIC) + _GENERATION_SIZE or not header.startswith(MAGIC):
        raise Corrupt(f"{key} is no checkpoint")
    generation = int.from_bytes(header[len(MAGIC) :], "big")
    found = group_key.get(generation) if isinstance(group_key, Mapping) else group_key(generation)
    if found is None:
        raise Denied(f"checkpoint {key} is sealed to group key {generation}, which this device does not have")
    return _inflate(open_group(sealed, found, _aad(group, header)), key)


def _aad(group: str, header: bytes) -> bytes:
    return statement("checkpoint", group.encode("utf-8"), header)


def _inflate(data: bytes, key: str) -> bytes:
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, MAX_STATE)
    except zlib.error as error:
        raise Corrupt(f"checkpoint {key} is damaged: {error}") from error
    if inflater.unconsumed_tail or not inflater.eof:
        raise Corrupt(f"checkpoint {key} is larger than {MAX_STATE} bytes or cut off: replay the log instead")
    return plain
