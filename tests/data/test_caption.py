"""Captions: true, varied, the same for the same arguments, in every language."""

from __future__ import annotations

import re

import pytest

from petzval.data.caption import LENGTHS, caption, training_caption, unseen_caption
from petzval.data.caption_languages import background_phrase, painted_phrase
from petzval.data.ground_truth import Scene
from petzval.data.languages import LANGUAGES
from petzval.data.palette import BACKGROUND_COLOURS
from petzval.data.phrases import COLOUR_ORDER, PHRASES
from petzval.data.prompts import evaluation_prompts, is_evaluation_text
from petzval.data.scene import SKILL_WEIGHTS, sample_scene
from petzval.data.sprites import SpriteLibrary
from petzval.data.texts import canonical_caption
from petzval.errors import DataError
from petzval.resolution import Resolution


def scenes(library: SpriteLibrary, skill: str, num: int = 30) -> list[Scene]:
    """Scenes of one skill, 128 x 128."""
    size = Resolution(128, 128)
    return [
        sample_scene(library, seed=0, index=i, resolution=size, skill=skill) for i in range(num)
    ]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("skill", SKILL_WEIGHTS)
def test_english_captions_name_every_thing(library: SpriteLibrary, skill: str, length: str) -> None:
    for scene in scenes(library, skill):
        text = caption(scene, length=length, seed=3)
        assert text == caption(scene, length=length, seed=3)
        assert text == text.strip() and "  " not in text and "{" not in text
        if scene.word is not None:
            assert f'"{scene.word.text}"' in text
        for thing in scene.objects:
            if skill == "portrait":
                assert re.search("portrait|avatar|head", text)
            else:
                assert thing.name in text
            if thing.painted and thing.colour is not None:
                assert thing.colour.replace("gray", "gr") in text


@pytest.mark.parametrize("length", ["medium", "dense"])
def test_long_captions_always_name_the_background(library: SpriteLibrary, length: str) -> None:
    for skill in SKILL_WEIGHTS:
        for scene in scenes(library, skill, 12):
            text = caption(scene, length=length)
            for colour in scene.background.colours:
                assert colour in text.replace("grey", "gray")
            assert text[0].isupper() and text.endswith((".", '"'))


def test_lengths_grow(library: SpriteLibrary) -> None:
    found = scenes(library, "single", 60)
    means = [
        sum(len(caption(scene, length=length).split()) for scene in found) / len(found)
        for length in LENGTHS
    ]
    assert means == sorted(means) and means[-1] > 2 * means[1]


def test_there_is_more_than_one_way_to_say_it(library: SpriteLibrary) -> None:
    scene = scenes(library, "single", 1)[0]
    assert len({caption(scene, seed=seed) for seed in range(40)}) > 10


def test_counts_places_and_relations_are_said(library: SpriteLibrary) -> None:
    numbers = ["", "one|single", "two", "three", "four", "five"]
    for scene in scenes(library, "count"):
        assert re.search(numbers[scene.count], caption(scene, length="short"))
    rows, columns = ("top|upper", "", "bottom|lower"), ("left", "", "right")
    for scene in scenes(library, "position"):
        text = caption(scene, length="medium")
        row, column = scene.objects[0].cell
        assert re.search(rows[row], text) and re.search(columns[column], text)
    words = {"left of": "left of", "right of": "right of", "above": "above|over"}
    for scene in scenes(library, "two"):
        text = caption(scene, length="short")
        first, second = (text.index(thing.name) for thing in scene.objects)
        assert first < second
        assert re.search(words.get(scene.relation, "below|under"), text[first:second])


def test_styles_other_than_the_default_are_nearly_always_named(library: SpriteLibrary) -> None:
    found = scenes(library, "single", 200)

    def share(style: str, words: str) -> float:
        chosen = [scene for scene in found if scene.style == style]
        said = [re.search(words, caption(scene, length="short")) for scene in chosen]
        return sum(match is not None for match in said) / len(chosen)

    assert share("noto", "cartoon") > 0.75
    assert 0.2 < share("fluent-3d", "3D") < 0.6


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_other_languages_name_things_and_backgrounds(library: SpriteLibrary, language: str) -> None:
    for skill in SKILL_WEIGHTS:
        for scene in scenes(library, skill, 12):
            text = caption(scene, language=language)
            assert text and "{" not in text
            for thing in scene.objects:
                assert thing.names.get(language, thing.name) in text
            if scene.background.kind == "plain":
                word = COLOUR_ORDER.index(scene.background.colours[0])
                assert PHRASES[language].background_words[word] in text
            if scene.word is not None:
                assert scene.word.text in text


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_every_language_has_every_word(language: str) -> None:
    phrases = PHRASES[language]
    assert len(set(phrases.background_words)) == len(BACKGROUND_COLOURS) == len(COLOUR_ORDER)
    assert len(set(phrases.paint_words)) == 11
    assert len(set(phrases.places)) == 9
    assert len(set(phrases.counts)) == 5
    assert all("{n}" in text and "{b}" in text for text in phrases.plain)
    assert all("{n}" in text and "{t}" in text for text in phrases.styled)
    for pattern in (*phrases.beside, *phrases.stacked):
        assert "{a}" in pattern and "{z}" in pattern and "{b}" in pattern
    assert all("{n}" in text for text in (phrases.small, phrases.silhouette, *phrases.counts))


def test_phrases_of_colour() -> None:
    assert background_phrase("de", "blue") == "blauer Hintergrund"
    assert background_phrase("zh", "light blue") == "浅蓝色背景"
    assert painted_phrase("fr", "cercle", "green") == "cercle de couleur verte"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"length": "epic"}, "unknown caption length"), ({"language": "tlh"}, "unknown language")],
)
def test_unknown_lengths_and_languages_list_the_known(
    library: SpriteLibrary, arguments: dict[str, str], message: str
) -> None:
    scene = scenes(library, "single", 1)[0]
    with pytest.raises(DataError, match=message) as caught:
        caption(scene, **arguments)  # pyright: ignore[reportArgumentType]
    assert "medium" in caught.value.hint or "en" in caught.value.hint


def test_training_never_has_the_words_of_an_evaluation_prompt(
    library: SpriteLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = scenes(library, "single", 1)[0]
    said = caption(scene, length="short", seed=5)
    assert unseen_caption(scene, length="short", seed=5) == said
    monkeypatch.setattr("petzval.data.caption.is_evaluation_text", lambda text: text == said)
    assert unseen_caption(scene, length="short", seed=5) != said
    # Even a scene that can hardly be said otherwise gets an answer.
    monkeypatch.setattr("petzval.data.caption.is_evaluation_text", lambda text: True)
    assert unseen_caption(scene, length="tag") == caption(scene, length="dense")


def test_evaluation_prompts_are_recognised_in_any_dress() -> None:
    prompt = evaluation_prompts()[0].prompt
    assert is_evaluation_text(prompt)
    assert is_evaluation_text(f"  {prompt.upper()}. ")
    assert not is_evaluation_text(f"{prompt} and more")


def test_training_captions_mix_lengths(library: SpriteLibrary) -> None:
    texts = [training_caption(scene) for scene in scenes(library, "single", 80)]
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 3 and max(lengths) >= 15
    scene = scenes(library, "two", 1)[0]
    assert training_caption(scene, seed=1) == training_caption(scene, seed=1)


def test_the_canonical_caption_says_only_what_the_prompt_told(library: SpriteLibrary) -> None:
    scene = next(s for s in scenes(library, "single") if s.background.kind == "plain")
    colour = scene.background.colours[0]
    assert canonical_caption(scene).endswith(" background")
    assert "background" not in canonical_caption(scene, "a thing")
    assert canonical_caption(scene, f"a thing, {colour} background").endswith("background")
