from __future__ import annotations

from pathlib import Path

from tests.server.running import Running, running


def _draw(studio: Running, *prompts: str) -> list[str]:
    """Ids of one picture a prompt, newest first."""
    ids: list[str] = []
    for prompt in prompts:
        job = studio.wait(studio.submit(prompt=prompt)["id"])
        ids.insert(0, job["images"][0]["id"])
    return ids


def test_the_gallery_is_searched_and_paged(studio: Running) -> None:
    ids = _draw(studio, "a red fox", "a blue fox", "100% of a fish", "a RED_fish")

    def found(**query: str | int) -> list[str]:
        return [p["id"] for p in studio.client.get("/v1/pictures", params=query).json()["data"]]

    assert found() == ids
    assert found(q="red") == [ids[0], ids[3]]
    assert found(q="fox blue") == [ids[2]]
    assert found(q="%") == [ids[1]] and found(q="_") == [ids[0]]
    assert found(q="'; DROP TABLE pictures; --") == []
    first = studio.client.get("/v1/pictures", params={"limit": 3}).json()
    assert [picture["id"] for picture in first["data"]] == ids[:3]
    cursor = first["next_cursor"]
    last = studio.client.get("/v1/pictures", params={"limit": 3, "cursor": cursor}).json()
    assert [picture["id"] for picture in last["data"]] == ids[3:]
    assert last["next_cursor"] is None
    for forged in ("x", "AAAA", cursor[:-4], "bmFuIHg="):
        assert studio.client.get("/v1/pictures", params={"cursor": forged}).status_code in (
            200,
            400,
        )


def test_favourites(studio: Running) -> None:
    ids = _draw(studio, "one", "two")
    changed = studio.client.patch(f"/v1/pictures/{ids[0]}", json={"favourite": True}).json()
    assert changed["favourite"] is True
    page = studio.client.get("/v1/pictures", params={"favourite": True}).json()
    assert [picture["id"] for picture in page["data"]] == [ids[0]]
    page = studio.client.get("/v1/pictures", params={"favourite": False}).json()
    assert [picture["id"] for picture in page["data"]] == [ids[1]]
    assert studio.client.patch(f"/v1/pictures/{ids[0]}", json={"seed": 1}).status_code == 400


def test_a_deleted_picture_comes_back_until_its_time_is_over(tmp_path: Path) -> None:
    with running(tmp_path) as studio:
        [id] = _draw(studio, "a fox")
        path = f"/v1/pictures/{id}"
        assert studio.client.delete(path).status_code == 204
        for gone in (path, f"{path}/file", f"{path}/thumbnail"):
            assert studio.client.get(gone).status_code == 404
        assert studio.client.get("/v1/pictures").json()["data"] == []
        assert studio.client.post(f"{path}/restore").json()["deleted"] is False
        assert studio.client.get(f"{path}/file").status_code == 200
        studio.client.delete(path)
        store = studio.studio.store
        assert store.remove_deleted(0.0) == 0
        assert store.remove_deleted(1e12) == 1
        assert list(store.pictures_folder.iterdir()) == []
        assert studio.client.post(f"{path}/restore").status_code == 404


def test_halves_of_files_are_removed_at_the_start(tmp_path: Path) -> None:
    with running(tmp_path) as studio:
        [id] = _draw(studio, "a fox")
    left = [tmp_path / "pictures" / name for name in (".petzval-0.part", "pic_lost.png")]
    for path in left:
        path.write_bytes(b"half")
    with running(tmp_path) as studio:
        assert not any(path.exists() for path in left)
        assert studio.client.get(f"/v1/pictures/{id}/file").status_code == 200


def test_a_disk_that_takes_no_more_is_a_failed_job(studio: Running) -> None:
    folder = studio.studio.store.pictures_folder
    folder.rmdir()
    folder.write_text("in the way")
    job = studio.wait(studio.submit()["id"])
    assert job["status"] == "failed" and str(folder) not in job["error"]["message"]
    folder.unlink()
    folder.mkdir()
    assert studio.wait(studio.submit()["id"])["status"] == "done"
