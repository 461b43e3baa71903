"""Contract suites that a backend's author runs on their own backend. Needs the extra `fractal-homeserver[testing]`.

Each kind has one module with one class: `fractal.testing.store.StoreContract` and so on. An author writes

    class TestTape(StoreContract):
        @pytest.fixture
        async def backend(self, tmp_path):
            async with open_tape(...) as store:
                yield store

with `asyncio_mode = "auto"` for pytest, and states in class attributes what the backend declares. See `suite.py`.
"""

import pytest

# Before any of them is imported, so that a failing assertion shows its values in an author's own test run too.
pytest.register_assert_rewrite(
    "fractal.testing.suite",
    "fractal.testing.store",
    "fractal.testing.snapshot",
    "fractal.testing.streams",
    "fractal.testing.chains",
    "fractal.testing.coordination",
    "fractal.testing.runtime",
    "fractal.testing.transport",
)
