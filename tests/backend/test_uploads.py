"""Uploads against a real server: resumed after an abort, byte-identical, refused where they do not fit."""

from __future__ import annotations

import hashlib
import os
import socket
import time

import pytest
from api_server import Running, send, shape_of

from backend.store import Upload, uploads

SIZE = 5_000_001


def reserve(client, size: int = SIZE) -> str:
    return client.post("/api/uploads", json={"name": "big.bin", "size": size, "kind": "model"}).json()["id"]


def offset(client, upload_id: str) -> int:
    return int(client.head(f"/api/uploads/{upload_id}").headers["upload-offset"])


def hang_up_after(server: Running, upload_id: str, data: bytes, count: int) -> None:
    """Send a PUT by hand that promises everything and hangs up after `count` bytes."""
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"PUT /api/uploads/{upload_id}?offset=0 HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
                    f"Content-Length: {len(data)}\r\n\r\n".encode() + data[:count])
        time.sleep(0.3)  # so that the server has begun to read


def resume(client, upload_id: str, data: bytes) -> dict:
    """Go on where the server says, until nobody else holds the upload."""
    for _ in range(100):
        at = offset(client, upload_id)
        answer = client.put(f"/api/uploads/{upload_id}", params={"offset": at}, content=data[at:])
        if answer.status_code == 200:
            return answer.json() | {"resumed_at": at}
        assert answer.status_code in (409, 423)
        time.sleep(0.05)
    pytest.fail("the upload stayed locked")


@pytest.mark.parametrize("count", [0, 1, 700_000, 3_000_000])
def test_aborted_and_resumed_is_byte_identical(local, count):
    client, data = local.client(), os.urandom(SIZE)
    upload_id = reserve(client)
    hang_up_after(local, upload_id, data, count)
    done = resume(client, upload_id, data)
    assert done["resumed_at"] <= count and (count < 2_000_000 or done["resumed_at"] > 0)
    assert done["complete"] and done["sha256"] == hashlib.sha256(data).hexdigest() and done["expires"] is None
    assert local.store.objects.local_file(uploads.content_key(done["sha256"])).read_bytes() == data


def test_chunks_arrive_in_order_or_not_at_all(local):
    client, upload_id = local.client(), reserve(local.client(), 10)
    address = f"/api/uploads/{upload_id}"
    assert client.put(address, params={"offset": 0}, content=b"0123").json()["offset"] == 4
    wrong = client.put(address, params={"offset": 8}, content=b"89")
    assert wrong.status_code == 409 and "4" in shape_of(wrong)["message"]
    assert client.put(address, params={"offset": 4}, content=b"456789").json()["complete"] is True
    assert client.put(address, params={"offset": 10}, content=b"x").status_code == 409


def test_beyond_the_declared_size_is_too_much(local):
    client, upload_id = local.client(), reserve(local.client(), 4)
    answer = client.put(f"/api/uploads/{upload_id}", params={"offset": 0}, content=b"123456")
    assert answer.status_code == 413 and shape_of(answer)["code"] == "limit"


def locked(server: Running, upload_id: str) -> bool:
    with server.store.read() as session:
        return session.get_one(Upload, upload_id).locked_by is not None


def test_a_second_writer_is_told_to_wait(local):
    client, upload_id = local.client(), reserve(local.client())
    with socket.create_connection(("127.0.0.1", local.port)) as raw:
        raw.sendall(f"PUT /api/uploads/{upload_id}?offset=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                    "Content-Length: 100\r\n\r\nabc".encode())
        deadline = time.monotonic() + 10
        while not locked(local, upload_id):
            assert time.monotonic() < deadline, "the writer never began"
            time.sleep(0.02)
        assert client.delete(f"/api/uploads/{upload_id}").status_code == 423
        answer = client.put(f"/api/uploads/{upload_id}", params={"offset": 0}, content=b"x")
        assert answer.status_code == 423 and shape_of(answer)["code"] == "busy"


def test_too_large_and_empty_are_refused_before_a_byte_is_sent(start):
    client = start(max_upload_bytes=1000).client()
    large = client.post("/api/uploads", json={"name": "m", "size": 1001, "kind": "model"})
    assert large.status_code == 413 and "at most 1,000" in shape_of(large)["message"]
    empty = client.post("/api/uploads", json={"name": "m", "size": 0, "kind": "model"})
    assert empty.status_code == 422 and shape_of(empty)["message"] == "The file is empty."


def test_a_removed_upload_is_gone(local):
    client = local.client()
    upload = send(client, "a.npz", "probe", b"abc")
    assert client.get(f"/api/uploads/{upload['id']}").json() == upload
    assert client.delete(f"/api/uploads/{upload['id']}").status_code == 204
    for method in ("GET", "HEAD", "DELETE"):
        assert client.request(method, f"/api/uploads/{upload['id']}").status_code == 404


def test_names_are_shown_and_never_used_as_paths(local):
    client = local.client()
    for name in ("../../etc/passwd", "..\\..\\boot.ini", "a/b/c.pt2", "\u202enpz.exe\n"):
        shown = client.post("/api/uploads", json={"name": name, "size": 1, "kind": "model"}).json()["name"]
        assert "/" not in shown and "\\" not in shown and shown.isprintable()
