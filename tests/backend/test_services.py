"""The same API on PostgreSQL and an S3-compatible store."""

from __future__ import annotations

import numpy as np
import pytest
from api_server import TILE_BYTES, analyse, finish, keep, matrix, send


@pytest.mark.services
def test_the_life_of_an_analysis_on_postgresql_and_s3(start, postgres_url, s3_url, tmp_path):
    server = start(database_url=postgres_url, object_store=s3_url, auth=True)
    ann, bob = server.person("ann@example.org"), server.person("bob@example.org")
    made = analyse(ann, options={"seed": 3})
    assert ann.post(f"/api/analyses/{made['id']}/cancel").json()["job"]["status"] == "cancelled"
    again = ann.post(f"/api/analyses/{made['id']}/rerun").json()
    finish(server, again, tmp_path / "view")
    path = f"/api/analyses/{made['id']}"
    token = ann.post(f"{path}/shares").json()["token"]
    assert bob.get(path).status_code == 404 and bob.get(path, params={"share": token}).json()["read_only"] is True
    meta = ann.get(f"{path}/matrices/m0", params={"order": "spectral"}).json()
    tile = ann.get(f"{path}/matrices/m0/tiles", params={"order": "spectral", "level": 1, "at": "0.0", "stat": "maxabs"})
    assert len(tile.content) == TILE_BYTES and meta["rows"]["ids"][0] == 299
    corner = np.frombuffer(tile.content, "<f2")[0] * meta["scale"]
    assert corner == pytest.approx(max(matrix()[::-1][:2, :2].ravel(), key=abs), rel=1e-3)
    assert (server.store.settings.data / "views").is_dir()
    export = ann.post(f"{path}/exports", json={"order": "original"}).json()
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "net.pt2").write_bytes(b"exported")
    keep(server.store, export["id"], "export", "export-on-s3", tmp_path / "export", {"filename": "net.pt2", "size": 8})
    assert ann.get(f"/api/exports/{export['id']}/file").content == b"exported"
    assert send(ann, "again.npz", "probe", b"probe bytes")["sha256"] == made["probe"]["sha256"]
    assert ann.delete(path).status_code == 204 and ann.get(path).status_code == 404
