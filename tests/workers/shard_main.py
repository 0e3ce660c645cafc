"""A real worker process whose engine is the tests' small pipeline of shards."""

import sys
from pathlib import Path

from shard_jobs import divided, stage_addresses

from workers.app import main
from workers.run import Engine

ENTRY = "shard_jobs:run_job"

if __name__ == "__main__":
    sys.exit(main(lambda: Engine(ENTRY, stage_addresses, {ENTRY: Path(__file__).parent}, divided)))
