"""A real worker process with the real engine."""

import sys

from workers.app import main

if __name__ == "__main__":
    sys.exit(main())
