"""What several benches use: subjects, peers, a server, times and memory."""

import sys

sys.modules.setdefault("coverage", None)  # numba looks for a package of this name, and would take bench/coverage.py
