"""Sites in network namespaces, the links between them, load, faults and what was seen."""

import os

import pytest

from .namespace import missing

# Nothing of it can be had without the rights to make a namespace: said on a laptop, a failure in CI.
MISSING = missing()
needs_network = pytest.mark.skipif(
    MISSING is not None and not os.environ.get("CI"), reason=f"no emulated network here: {MISSING}"
)
