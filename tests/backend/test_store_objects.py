"""The content store, in a folder and on a real S3 server; and artefacts with what uses them."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend.settings import load_settings
from backend.store import LOCAL_OWNER, Analysis, artefacts, cleanup, jobs, open_store
from backend.store.objects import open_objects
from cipm.errors import CorruptFile, NotFound

NAME = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\"), min_size=1,
               max_size=40).filter(lambda name: name not in (".", "..") and name.isprintable())


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.services)])
def options(request, tmp_path):
    return load_settings(data=tmp_path / "data",
                         object_store=request.getfixturevalue("s3_url") if request.param == "s3" else "")


@pytest.fixture
def objects(options):
    return open_objects(options)


@pytest.fixture
def store(options):
    opened = open_store(options)
    yield opened
    opened.close()


def write(folder, **files):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_file_comes_back_and_goes(objects, tmp_path):
    data = os.urandom(11 * 2**20)  # more than one part of a multipart upload
    (tmp_path / "x").write_bytes(data)
    objects.put_file("uploads/abc", tmp_path / "x")
    assert objects.exists("uploads/abc") and not objects.exists("uploads/ab")
    assert objects.get_file("uploads/abc", tmp_path / "deep" / "y").read_bytes() == data
    for _ in range(2):
        assert objects.local_file("uploads/abc").read_bytes() == data
    objects.put_file("uploads/abc", tmp_path / "x")  # again changes nothing
    objects.delete_file("uploads/abc")
    objects.delete_file("uploads/abc")
    assert not objects.exists("uploads/abc")
    for look in (lambda: objects.local_file("uploads/abc"), lambda: objects.get_file("uploads/abc", tmp_path / "z")):
        with pytest.raises(NotFound):
            look()
    assert not (tmp_path / "z").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "deep", "x"]


def test_a_folder_exists_when_its_manifest_does(objects, tmp_path):
    folder = write(tmp_path / "f", a=b"1", b=b"22")
    write(folder / "orders" / "layer.0 (x)", c=b"333")
    assert objects.manifest("artefacts/p") is None
    files = objects.put_folder("artefacts/p", folder)
    assert files == {"a": {"size": 1}, "b": {"size": 2}, "orders/layer.0 (x)/c": {"size": 3}} == objects.manifest("artefacts/p")
    place = objects.fetch_folder("artefacts/p", tmp_path / "into")
    assert (place / "orders/layer.0 (x)/c").read_bytes() == b"333"
    assert objects.local_file("artefacts/p/files/b").read_bytes() == b"22"
    objects.put_folder("artefacts/pp", folder)
    objects.delete_folder("artefacts/p")
    assert objects.manifest("artefacts/p") is None and not objects.exists("artefacts/p/files/a")
    assert objects.manifest("artefacts/pp") == files


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(NAME, min_size=1, max_size=4))
def test_any_printable_name_comes_back(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    local = open_objects(load_settings(data=folder / "data"))
    (folder / "in").mkdir()
    names = {name for name in names if len(name.encode()) < 120}
    for name in names:
        (folder / "in" / name).write_text(name)
    local.put_folder("artefacts/n", folder / "in")
    place = local.fetch_folder("artefacts/n", folder / "out")
    assert {path.name: path.read_text() for path in place.glob("*")} == {name: name for name in names}


@pytest.mark.parametrize("trouble", ["link", "folder link", "pipe", "name", "not a folder", "itself a link"])
def test_only_plain_files_are_taken(objects, tmp_path, trouble):
    folder = write(tmp_path / "f", a=b"1")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    if trouble == "link":
        (folder / "b").symlink_to(tmp_path / "secret" / "key")
    elif trouble == "folder link":
        (folder / "b").symlink_to(tmp_path / "secret")
    elif trouble == "pipe":
        os.mkfifo(folder / "b")
    elif trouble == "name":
        (folder / "b\nc").write_text("")
    elif trouble == "not a folder":
        folder = folder / "a"
    else:
        (tmp_path / "g").symlink_to(folder)
        folder = tmp_path / "g"
    with pytest.raises(CorruptFile):
        objects.put_folder("artefacts/p", folder)
    assert objects.manifest("artefacts/p") is None


def test_artefacts_first_writer_stays(store, tmp_path):
    first = artefacts.record(store, "a" * 64, "open", write(tmp_path / "1", x=b"first"), 2.0)
    second = artefacts.record(store, "a" * 64, "open", write(tmp_path / "2", x=b"other"), 9.0)
    assert second.prefix == first.prefix and (second.size, second.seconds) == (5, 2.0)
    assert artefacts.file(store, second, "x").read_bytes() == b"first"
    for name in ("y", "../x", "/etc/passwd", ""):
        with pytest.raises(NotFound):
            artefacts.file(store, second, name)
    assert set(artefacts.find(store, ["a" * 64, "b" * 64])) == {"a" * 64}


@pytest.mark.services
def test_many_writers_of_one_artefact_leave_one(postgres_url, tmp_path):
    store = open_store(load_settings(data=tmp_path / "data", database_url=postgres_url))
    folder, found = write(tmp_path / "f", x=b"same"), []
    threads = [threading.Thread(target=lambda: found.append(artefacts.record(store, "a" * 64, "open", folder, 0.0)))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len({row.prefix for row in found}) == 1
    assert [path.name for path in (store.objects.root / "artefacts").iterdir()] == [found[0].prefix.removeprefix("artefacts/")]
    store.close()


def test_an_artefact_whose_files_are_gone_is_forgotten(store, tmp_path):
    kept = artefacts.record(store, "a" * 64, "open", write(tmp_path / "1", x=b"1"), 0.0)
    store.objects.delete_folder(kept.prefix)
    assert artefacts.find(store, ["a" * 64]) == {}
    assert artefacts.record(store, "a" * 64, "open", tmp_path / "1", 0.0).prefix != kept.prefix


def test_a_refused_folder_leaves_nothing(store, tmp_path):
    folder = write(tmp_path / "1", a=b"1")
    (folder / "z").symlink_to("/etc/passwd")
    with pytest.raises(CorruptFile):
        artefacts.record(store, "a" * 64, "open", folder, 0.0)
    assert artefacts.find(store, ["a" * 64]) == {}
    if store.objects.root:
        assert [path for path in store.objects.root.rglob("*") if path.is_file()] == []


def test_files_stay_while_one_analysis_uses_them(store, tmp_path):
    kept = []
    for number in (1, 2):
        with store.write() as session:
            analysis = Analysis(owner_id=LOCAL_OWNER, model_name="m", model_sha256="0" * 64, model_size=1, options={})
            session.add(analysis)
            session.flush()
            job = jobs.enqueue(session, analysis, "analyze")
        lease = jobs.claim(store, "w")
        own = f"{number}" * 64
        artefacts.use(store, job.id, {"open": "a" * 64, "view": own})
        artefacts.record(store, "a" * 64, "open", write(tmp_path / f"o{number}", x=b"1"), 0.0)
        artefacts.record(store, own, "view", write(tmp_path / f"v{number}", x=b"2"), 0.0)
        jobs.finish(store, lease, {})
        kept.append(analysis.id)
    with store.read() as session:
        assert artefacts.of_analysis(session, kept[1]).address == "2" * 64
        assert artefacts.kept_bytes(session) == 3
    cleanup.delete_analysis(store, kept[0])
    assert set(artefacts.find(store, ["a" * 64, "1" * 64, "2" * 64])) == {"a" * 64, "2" * 64}
    with store.read() as session, pytest.raises(NotFound):
        artefacts.of_analysis(session, kept[0])
    cleanup.delete_analysis(store, kept[1])
    assert artefacts.find(store, ["a" * 64, "2" * 64]) == {}
    if store.objects.root:
        assert [path for path in store.objects.root.rglob("*") if path.is_file()] == []
