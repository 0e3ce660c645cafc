"""Uploading: the project's chunked PUT beside FastAPI's own UploadFile, each on a real server in a process of its own.

    python bench/upload.py [--gigabytes 3]

Prints, for both, the growth of the server's memory (peak resident over that before the upload) and MB/s; and for ours
that an upload aborted in the middle and resumed is byte-identical. Data is made on the way (repeating blocks), never
stored here; what the servers store goes to a temporary folder, which is removed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import multiprocessing
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI, UploadFile

from backend.app import create_app
from backend.settings import Settings

BLOCK = bytes(range(256)) * 4096
MB = 1e6


def ours(data: str) -> FastAPI:
    """Return this project's API."""
    return create_app(Settings(data=Path(data), embedded_worker=False, max_upload_bytes=2**40))


def peer(data: str) -> FastAPI:
    """Return the plain way: a multipart form field, copied to a file and hashed, as tutorials do it."""
    app = FastAPI()

    @app.post("/upload")
    def upload(file: UploadFile) -> dict[str, str]:
        digest = hashlib.sha256()
        with open(Path(data) / "peer.bin", "wb") as out:
            while chunk := file.file.read(2**20):
                out.write(chunk)
                digest.update(chunk)
        return {"sha256": digest.hexdigest()}

    return app


def run_server(make, data: str, port: int) -> None:
    tempfile.tempdir = data
    uvicorn.run(make(data), host="127.0.0.1", port=port, log_level="error")


def resident(pid: int) -> float:
    """Return resident memory of a process, MB."""
    return next(int(line.split()[1]) / 1e3 for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS"))


class Server:
    """A server in a process of its own whose memory is sampled every 20 ms."""

    def __init__(self, make, data: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = multiprocessing.get_context("spawn").Process(target=run_server, args=(make, data, self.port))
        self.process.start()
        self.url = f"http://127.0.0.1:{self.port}"
        self._wait()
        self.peak, self.sampling = 0.0, True
        self.before = resident(self.process.pid)
        threading.Thread(target=self._sample, daemon=True).start()

    def _wait(self) -> None:
        while self.process.is_alive():
            try:
                httpx.get(self.url, timeout=5)
                return
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit("the server did not start")

    def _sample(self) -> None:
        while self.sampling:
            self.peak = max(self.peak, resident(self.process.pid))
            time.sleep(0.02)

    def close(self) -> float:
        """End the server and return by how much its memory grew, MB."""
        self.sampling = False
        grown = self.peak - self.before
        self.process.terminate()
        self.process.join()
        return grown


def blocks(size: int, start: int = 0) -> Iterator[bytes]:
    """Yield the bytes from `start` to `size` of an endless repetition of one block."""
    at = start
    while at < size:
        part = BLOCK[at % len(BLOCK):][:size - at]
        yield part
        at += len(part)


def digest_of(size: int) -> str:
    digest = hashlib.sha256()
    for part in blocks(size):
        digest.update(part)
    return digest.hexdigest()


def send_ours(server: Server, size: int, stop_at: int | None = None) -> tuple[float, str]:
    """Upload in one PUT, or broken off at `stop_at` and resumed; return seconds and the server's hash."""
    began = time.perf_counter()
    with httpx.Client(base_url=server.url, timeout=600) as client:
        upload = client.post("/api/uploads", json={"name": "big.bin", "size": size, "kind": "model"}).raise_for_status()
        address = f"/api/uploads/{upload.json()['id']}"
        if stop_at is not None:
            hang_up(server, address, size, stop_at)
        at = settled(client, address)
        answer = client.put(address, params={"offset": at}, content=blocks(size, at),
                            headers={"Content-Length": str(size - at)}).raise_for_status().json()
    return time.perf_counter() - began, answer["sha256"]


def hang_up(server: Server, address: str, size: int, stop_at: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.putrequest("PUT", f"{address}?offset=0")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    for part in blocks(stop_at):
        connection.send(part)
    connection.close()


def settled(client: httpx.Client, address: str) -> int:
    """Return the offset once the broken writer has given the upload back."""
    while True:
        at = int(client.head(address).headers["upload-offset"])
        if client.put(address, params={"offset": at}, content=b"").status_code != 423:
            return int(client.head(address).headers["upload-offset"])
        time.sleep(0.1)


def send_peer(server: Server, size: int) -> tuple[float, str]:
    """Upload as a multipart form, made on the way; return seconds and the server's hash."""
    edge = "frontier"
    head = (f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n").encode()
    tail = f"\r\n--{edge}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        yield from blocks(size)
        yield tail

    began = time.perf_counter()
    answer = httpx.post(f"{server.url}/upload", content=body(), timeout=600, headers={
        "Content-Type": f"multipart/form-data; boundary={edge}", "Content-Length": str(len(head) + size + len(tail))})
    return time.perf_counter() - began, answer.raise_for_status().json()["sha256"]


def measure(name: str, make, send, size: int) -> tuple[float, float]:
    """Run one way on a fresh server and folder; print and return its memory growth in MB and its MB/s."""
    folder = tempfile.mkdtemp(prefix="cipm-bench-")
    try:
        server = Server(make, folder)
        try:
            seconds, sha256 = send(server, size)
        finally:
            grown = server.close()
        assert sha256 == digest_of(size), "not byte-identical"
    finally:
        shutil.rmtree(folder)
    rate = size / seconds / MB
    print(f"{name:32} memory +{grown:7.1f} MB   {rate:7.1f} MB/s   {seconds:6.1f} s   byte-identical")
    return grown, rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    size = int(parser.parse_args().gigabytes * 1e9)
    grown, rate = measure("chunked PUT", ours, send_ours, size)
    measure("chunked PUT, aborted, resumed", ours, lambda s, n: send_ours(s, n, n // 2), size)
    peer_grown, peer_rate = measure("UploadFile (peer)", peer, send_peer, size)
    print(f"ours / peer: memory {grown / max(peer_grown, 0.1):.2f}, rate {rate / peer_rate:.2f}")


if __name__ == "__main__":
    main()
