"""A plugin of pytest: no test fails because its machine was slow.

Hypothesis fails an example that takes longer than a fifth of a second, unless told otherwise or in CI. It is loaded by name (`-p`), for
all folders of tests.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
