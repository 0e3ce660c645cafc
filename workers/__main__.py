"""`python -m workers`: one worker process; `--with-parent` ends it with the process that started it."""

import sys

from workers.app import main

if __name__ == "__main__":
    sys.exit(main())
