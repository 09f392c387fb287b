"""The official client of OpenAI's API, unchanged, pointed at us."""

from __future__ import annotations

import base64
import io
from collections.abc import Generator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from petzval.inference.image import read_recipe
from tests.server.running import Running, running
from tests.server.scripted import ScriptedDrawer
from tests.support import PATIENCE, until


@pytest.fixture(scope="module")
def client(shared_studio: Running) -> Generator[openai.OpenAI]:
    with _client(shared_studio) as made:
        yield made


def _client(studio: Running, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{studio.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


def _picture(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or "")))


def test_pictures_come_back_in_base64(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a fox", n=2, size="128x128", model="scripted")
    assert answer.data is not None and len(answer.data) == 2
    assert _picture(answer.data[0].b64_json).size == (128, 128)
    assert (answer.output_format, answer.background, answer.size) == ("png", "opaque", "128x128")
    assert answer.usage is not None and answer.usage.output_tokens == 2 * 64
    assert answer.created > 1_600_000_000


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats_carry_the_recipe(client: openai.OpenAI, format: Any, tmp_path: Path) -> None:
    answer = client.images.generate(
        prompt="a fox", output_format=format, extra_body={"petzval": {"seed": 5, "steps": 2}}
    )
    assert answer.data is not None
    data = base64.b64decode(answer.data[0].b64_json or "")
    path = tmp_path / f"x.{format}"
    path.write_bytes(data)
    assert (read_recipe(path).seed, read_recipe(path).steps) == (5, 2)
    with Image.open(path) as picture:
        assert picture.format == format.upper()


def test_compression_makes_files_smaller(client: openai.OpenAI) -> None:
    sizes: list[int] = []
    for compression in (5, 95):
        answer = client.images.generate(
            prompt="a fox",
            output_format="jpeg",
            output_compression=compression,
            extra_body={"petzval": {"seed": 1}},
        )
        assert answer.data is not None
        sizes.append(len(answer.data[0].b64_json or ""))
    assert sizes[0] < sizes[1] / 2


def test_links_open_without_a_key_until_they_are_changed(
    client: openai.OpenAI, shared_studio: Running
) -> None:
    answer = client.images.generate(prompt="a fox", response_format="url")
    assert answer.data is not None
    url = answer.data[0].url or ""
    fetched = shared_studio.client.get(url)
    assert fetched.headers["content-type"] == "image/png"
    assert shared_studio.client.get(url.replace("end=1", "end=2")).status_code == 404
    assert shared_studio.client.get(url[:-1] + ("0" if url[-1] != "0" else "1")).status_code == 404


def test_streaming_sends_pictures_so_far_and_then_the_picture(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="a fox", stream=True, partial_images=2, n=2, extra_body={"petzval": {"seed": 3}}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ] * 2
    indices = [e.partial_image_index for e in events if e.type == "image_generation.partial_image"]
    assert indices == [0, 1, 0, 1]
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert _picture(last.b64_json).getpixel((0, 0)) == (4, 4, 4)
    assert last.usage.output_tokens == 64


def test_a_stream_without_partial_images_is_one_event(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt="a fox", stream=True))
    assert [event.type for event in events] == ["image_generation.completed"]


async def _drawn_async(url: str) -> int:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.images.generate(prompt="a fox")
        stream = await client.images.generate(prompt="a fox", stream=True, partial_images=1)
        kinds = [event.type async for event in stream]
    assert kinds[-1] == "image_generation.completed"
    return len(answer.data or ())


def test_the_asynchronous_client_works_too(shared_studio: Running) -> None:
    import asyncio

    assert asyncio.run(_drawn_async(shared_studio.url)) == 1


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["scripted", "other"]
    assert client.models.retrieve("other").owned_by == "petzval"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("quality", "steps"), [("low", 10), ("auto", 20), ("standard", 20), ("hd", 30), ("max", 50)]
)
def test_quality_is_a_number_of_steps(client: openai.OpenAI, quality: Any, steps: int) -> None:
    answer = client.images.generate(prompt="a fox", model="other", quality=quality)
    assert answer.data is not None
    extra: Any = answer.data[0].model_extra
    assert extra["petzval"]["steps"] == steps


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"prompt": ""}, openai.BadRequestError),
        ({"prompt": "x", "size": "100x100"}, openai.BadRequestError),
        ({"prompt": "x", "background": "transparent"}, openai.BadRequestError),
        ({"prompt": "x", "output_compression": 5}, openai.BadRequestError),
        ({"prompt": "x", "n": 11}, openai.BadRequestError),
        ({"prompt": "x", "output_format": "gif"}, openai.BadRequestError),
        ({"prompt": "x", "model": "dall-e-9"}, openai.NotFoundError),
        ({"prompt": "x", "extra_body": {"colour": "red"}}, openai.BadRequestError),
    ],
)
def test_mistakes_are_errors_of_the_client(
    client: openai.OpenAI, asked: dict[str, Any], kind: type[openai.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        client.images.generate(**asked)
    assert caught.value.type == "invalid_request_error" and caught.value.code


def test_keys_are_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, keys=True) as studio:
        key = studio.studio.keys.add("test")
        with pytest.raises(openai.AuthenticationError):
            _client(studio, "pz-wrong").images.generate(prompt="a fox")
        answer = _client(studio, key).images.generate(prompt="a fox")
        assert answer.data is not None


def test_who_goes_away_does_not_keep_the_device_busy(tmp_path: Path) -> None:
    drawer = ScriptedDrawer(seconds=0.2)
    with running(tmp_path, drawer) as studio:
        stream = _client(studio).images.generate(
            prompt="a fox", stream=True, extra_body={"petzval": {"steps": 100}}
        )
        until(lambda: drawer.drawn)
        stream.close()
        [job] = studio.client.get("/v1/jobs").json()["data"]
        assert studio.wait(job["id"])["status"] == "cancelled"


def test_a_failure_while_streaming_is_an_event(tmp_path: Path) -> None:
    def fail(image: Any, step: int) -> None:
        raise RuntimeError("broken")

    with running(tmp_path, ScriptedDrawer(fail=fail)) as studio:
        with pytest.raises(openai.APIError, match="failed"):
            list(_client(studio).images.generate(prompt="a fox", stream=True))
        with pytest.raises(openai.InternalServerError):
            _client(studio).images.generate(prompt="a fox")
