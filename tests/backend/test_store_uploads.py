"""Uploads: resumed byte by byte, one writer at a time, never more than declared, flat in memory, nothing left over."""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import update

from backend.settings import load_settings
from backend.store import LOCAL_OWNER, Analysis, Upload, User, cleanup, open_store, uploads
from backend.store.database import db_now
from backend.store.models import utc_now
from cipm.errors import Busy, Conflict, InputError, LimitExceeded, NotFound


@pytest.fixture
def store(tmp_path):
    opened = open_store(load_settings(data=tmp_path, max_upload_bytes=200 * 2**20, free_disk_bytes=0))
    yield opened
    opened.close()


def begin(store, size, name="m.pt2") -> str:
    return uploads.create(store, LOCAL_OWNER, name, "model", size).id


def append(store, upload_id, offset, *chunks):
    return uploads.append(store, upload_id, LOCAL_OWNER, offset, chunks)


def files(store):
    found = [*store.objects.root.rglob("*"), *(store.settings.data / "uploads").glob("*")]
    return sorted(path.name for path in found if path.is_file())


def change(store, upload_id, **values):
    with store.write() as session:
        session.execute(update(Upload).where(Upload.id == upload_id).values(**values))


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=5000), cuts=st.lists(st.integers(0, 5000), max_size=6), streamed=st.booleans())
def test_any_cutting_gives_the_same_file(store, data, cuts, streamed):
    upload_id, offset = begin(store, len(data)), 0
    for cut in sorted({min(cut, len(data)) for cut in cuts} | {len(data)}):
        piece = data[offset:cut]
        upload = (asyncio.run(uploads.append_async(store, upload_id, LOCAL_OWNER, offset, stream(piece))) if streamed
                  else append(store, upload_id, offset, piece))
        offset = cut
        assert upload.offset == cut and upload.complete == (cut == len(data))
    assert upload.sha256 == hashlib.sha256(data).hexdigest() and upload.expires is None
    assert store.objects.local_file(uploads.content_key(upload.sha256)).read_bytes() == data
    assert not uploads.part_path(store, upload_id).exists()
    with pytest.raises(Conflict, match="complete already"):
        append(store, upload_id, len(data), b"x")


async def stream(data, fail=False):
    for start in range(0, len(data), 7):
        yield data[start:start + 7]
    if fail:
        raise ConnectionError("the sender hung up")


def test_what_came_before_a_broken_connection_counts(store):
    def broken():
        yield b"abc"
        raise ConnectionError("the sender hung up")

    upload_id = begin(store, 30)
    with pytest.raises(ConnectionError):
        uploads.append(store, upload_id, LOCAL_OWNER, 0, broken())
    with pytest.raises(ConnectionError):
        asyncio.run(uploads.append_async(store, upload_id, LOCAL_OWNER, 3, stream(b"defghijklm", fail=True)))
    assert append(store, upload_id, 13, b"n" * 17).complete
    assert store.objects.local_file(uploads.content_key(hashlib.sha256(b"abcdefghijklm" + b"n" * 17).hexdigest()))


def test_a_cancelled_stream_gives_its_lock_back(store):
    async def endless():
        yield b"abc"
        await asyncio.sleep(60)

    async def hang_up():
        task = asyncio.create_task(uploads.append_async(store, upload_id, LOCAL_OWNER, 0, endless()))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    upload_id = begin(store, 4)
    asyncio.run(hang_up())
    assert append(store, upload_id, 3, b"d").complete


def test_bytes_of_a_dead_server_that_never_counted_are_sent_again(store):
    upload_id = begin(store, 6)
    append(store, upload_id, 0, b"abc")
    with open(uploads.part_path(store, upload_id), "ab") as file:
        file.write(b"XYZ")
    assert append(store, upload_id, 3, b"def").sha256 == hashlib.sha256(b"abcdef").hexdigest()


@pytest.mark.parametrize("reached", ["last byte counted", "hashed", "kept"])
def test_a_server_that_died_at_the_end_is_caught_up(store, reached):
    upload_id, sha256 = begin(store, 3), hashlib.sha256(b"abc").hexdigest()
    path = uploads.part_path(store, upload_id)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"abc")
    change(store, upload_id, offset=3, sha256=None if reached == "last byte counted" else sha256)
    if reached == "kept":
        store.objects.put_file(uploads.content_key(sha256), path)
    upload = append(store, upload_id, 3)
    assert upload.complete and upload.sha256 == sha256 and files(store) == [sha256]


def test_a_wrong_offset_is_told_the_right_one(store):
    upload_id = begin(store, 10)
    append(store, upload_id, 0, b"abcd")
    for offset in (0, 3, 5, 10, -1):
        with pytest.raises(Conflict, match="The next byte to send is 4") as caught:
            append(store, upload_id, offset, b"x")
        assert caught.value.status == 409
    assert append(store, upload_id, 4, b"efghij").complete


def test_one_writer_at_a_time(store):
    upload_id = begin(store, 10)

    def first():
        yield b"ab"
        with pytest.raises(Busy) as caught:
            append(store, upload_id, 0, b"zz")
        assert caught.value.status == 423
        with pytest.raises(Busy):
            uploads.delete(store, upload_id, LOCAL_OWNER)
        yield b"cd"

    assert uploads.append(store, upload_id, LOCAL_OWNER, 0, first()).offset == 4


def test_a_writer_that_lost_its_lock_changes_nothing(store, monkeypatch):
    monkeypatch.setattr(uploads, "RENEW_SECONDS", -1.0)  # as after a pause

    upload_id = begin(store, 4)

    def slow():
        yield b"ab"
        change(store, upload_id, locked_until=db_now() - 1)
        append(store, upload_id, 0, b"wxyz")
        yield b"cd"

    with pytest.raises(Conflict, match="went to another writer"):
        uploads.append(store, upload_id, LOCAL_OWNER, 0, slow())
    with store.read() as session:
        upload = uploads.get(session, upload_id, LOCAL_OWNER)
    assert upload.complete and upload.sha256 == hashlib.sha256(b"wxyz").hexdigest()
    assert store.objects.local_file(uploads.content_key(upload.sha256)).read_bytes() == b"wxyz"


def test_no_more_than_declared(store):
    upload_id = begin(store, 3)
    with pytest.raises(LimitExceeded, match="More bytes came than the 3 that were declared") as caught:
        append(store, upload_id, 0, b"ab", b"cd")
    assert caught.value.status == 413
    with store.read() as session:
        assert not uploads.get(session, upload_id, LOCAL_OWNER).complete
    uploads.delete(store, upload_id, LOCAL_OWNER)
    assert files(store) == []


def test_what_is_refused_at_the_start(store, monkeypatch):
    for arguments, words in [(("m", "model", 0), "The file is empty."), (("m", "virus", 1), "a model or a probe, not 'virus'"),
                             (("m", "model", 201 * 2**20), "takes at most 209,715,200")]:
        with pytest.raises(InputError, match=words):
            uploads.create(store, LOCAL_OWNER, *arguments)
    monkeypatch.setattr(uploads.shutil, "disk_usage", lambda path: _Disk(150 * 2**20))
    begin(store, 100 * 2**20)
    with pytest.raises(LimitExceeded, match="the server has room for 52,428,800"):
        begin(store, 100 * 2**20)


class _Disk:
    def __init__(self, free):
        self.free = free


def test_too_many_unfinished_uploads(store):
    for _ in range(uploads.MAX_OPEN):
        begin(store, 1)
    with pytest.raises(LimitExceeded, match="50 uploads are unfinished"):
        begin(store, 1)


def test_names_are_shown_never_used(store):
    names = [uploads.create(store, LOCAL_OWNER, name, "probe", 1).name
             for name in ("../../etc/passwd", "C:\\x\\m.pt2", "a\x00b\nc", "", "/", "n" * 999)]
    assert names == ["passwd", "m.pt2", "abc", "unnamed", "unnamed", "n" * 200]


def test_other_people_see_nothing(store):
    with store.write() as session:
        session.add(User(id="other", email="other@example.org"))
    upload_id = begin(store, 3)
    with pytest.raises(NotFound):
        uploads.append(store, upload_id, "other", 0, [b"abc"])
    with pytest.raises(NotFound):
        uploads.delete(store, upload_id, "other")
    append(store, upload_id, 0, b"abc")
    with store.read() as session:
        assert uploads.listing(session, "other") == []
        assert [row.id for row in uploads.listing(session, LOCAL_OWNER)] == [upload_id]


def test_equal_files_are_kept_once_and_while_they_are_needed(store):
    first, second = begin(store, 3), begin(store, 3)
    sha256 = append(store, first, 0, b"abc").sha256
    assert append(store, second, 0, b"abc").sha256 == sha256 and files(store) == [sha256]
    with store.write() as session:
        analysis = Analysis(owner_id=LOCAL_OWNER, model_name="m", model_sha256=sha256, model_size=3, options={})
        session.add(analysis)
    uploads.delete(store, first, LOCAL_OWNER)
    uploads.delete(store, second, LOCAL_OWNER)
    assert files(store) == [sha256]
    cleanup.delete_analysis(store, analysis.id)
    assert files(store) == []


def test_expired_uploads_go_and_complete_ones_stay(store):
    done, late, fresh = begin(store, 3), begin(store, 3), begin(store, 3)
    sha256 = append(store, done, 0, b"abc").sha256
    append(store, late, 0, b"a")
    append(store, fresh, 0, b"a")
    change(store, late, expires=utc_now() - timedelta(seconds=1))
    assert cleanup.collect(store) == 1
    assert files(store) == sorted([sha256, f"{fresh}.part"])
    with store.read() as session, pytest.raises(NotFound):
        uploads.get(session, late, LOCAL_OWNER)


def test_a_sample_is_adopted(store, tmp_path):
    (tmp_path / "s.npz").write_bytes(b"sample")
    upload = uploads.adopt(store, LOCAL_OWNER, "s.npz", "probe", tmp_path / "s.npz")
    assert upload.complete and (tmp_path / "s.npz").exists() and upload.kind == "probe"


def test_memory_stays_flat(store):
    size, piece = 150 * 2**20, os.urandom(2**20)
    upload_id = begin(store, size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert append(store, upload_id, 0, *()).offset == 0
    assert uploads.append(store, upload_id, LOCAL_OWNER, 0, (piece for _ in range(150))).complete
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 30 * 2**20
