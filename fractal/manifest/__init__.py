"""From a Compose file (a subset, plus `x-homeserver`) to an app's specification, and that to and from the log.

The text is untrusted: every problem is found and told at once, as `FILE:LINE: key: message`; nothing is ever expanded,
looked up or fetched.
"""

from fractal.manifest.compose import Checked, check, parse
from fractal.manifest.plain import from_plain_spec, to_plain_spec
from fractal.manifest.values import Given

__all__ = ["Checked", "Given", "check", "from_plain_spec", "parse", "to_plain_spec"]
