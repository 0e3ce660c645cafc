"""Everything that is kept: rows, leases, files. Synchronous; call it from a thread, never from the event loop.

    store = open_store(settings)              folders made, migrations run, the local owner present
    with store.read() as session: …           an SQLAlchemy session; store.write() commits at the end, or rolls back
    store.objects                             put_file, get_file, local_file, put_folder, fetch_folder, delete
    store.wake(job_id)                        tell a worker, after the commit (losing the message loses nothing)
    uploads                                   create, append, append_async, get, listing, adopt, delete, content_key
    jobs                                      enqueue, request_cancel, health; for workers: claim … sweep
    shards                                    for workers: of, tell_parent
    artefacts                                 of_analysis, of_job, file, folder; for workers: find, record, use
    cleanup                                   delete_analysis, collect
"""

from backend.store import artefacts, cleanup, jobs, models, shards, uploads
from backend.store.models import (
    LOCAL_OWNER,
    Analysis,
    ApiToken,
    Artefact,
    Job,
    Share,
    StageUse,
    Upload,
    User,
    UserSession,
    WhatIf,
    Worker,
)
from backend.store.objects import ObjectStore
from backend.store.store import Store, open_store

__all__ = [
    "LOCAL_OWNER", "Analysis", "ApiToken", "Artefact", "Job", "ObjectStore", "Share", "StageUse", "Store", "Upload",
    "User", "UserSession", "WhatIf", "Worker", "artefacts", "cleanup", "jobs", "models", "open_store",
    "shards", "uploads",
]
