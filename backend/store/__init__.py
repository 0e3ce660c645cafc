"""Everything that is kept: rows, leases, files. Synchronous; call it from a thread, never from the event loop.

    store = open_store(settings)              folders made, migrations run, the local owner present
    with store.read() as session: …           an SQLAlchemy session; store.write() commits at the end, or rolls back
    store.objects                             put_file, get_file, local_file, put_folder, fetch_folder, delete
    store.wake(job_id)                        tell a worker, after the commit (losing the message loses nothing)
    uploads.create / append / append_async / get / listing / complete_path / delete / sweep
    jobs.enqueue / claim / heartbeat / report / finish / fail / release / request_cancel / sweep / health
    artefacts.find / record / file / of_analysis
    cleanup.delete_analysis / delete_upload / collect
"""
