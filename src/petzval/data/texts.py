"""Text for the language encoder: prompts in twelve languages, each with its English caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from petzval.data import english
from petzval.data.caption import LENGTH_WEIGHTS, LENGTHS, unseen_caption
from petzval.data.common_words import COMMON_WORDS
from petzval.data.concepts import Concept
from petzval.data.english import COUNT_WORDS, PLACES, STYLES
from petzval.data.ground_truth import Scene
from petzval.data.languages import LANGUAGES, MEASURED_LANGUAGES
from petzval.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS
from petzval.data.phrases import PHRASES
from petzval.data.scene import WORDS, sample_scene
from petzval.data.sprites import SpriteLibrary
from petzval.resolution import Resolution

ENGLISH_SHARE = 0.4
_SCENE_SHARE, _NAME_SHARE = 0.68, 0.24
_RESOLUTION = Resolution(128, 128)
_SALT = 0x7E47


class CorpusExample(NamedTuple):
    """A prompt in some language, and the short English caption a model should continue it with."""

    prompt: str
    caption: str
    language: str


def corpus_examples(
    library: SpriteLibrary, seed: int, *, start: int = 0
) -> Iterator[CorpusExample]:
    """The endless stream of examples `seed`, from number `start` on; the same every time."""
    index = start
    while True:
        yield corpus_example(library, seed, index)
        index += 1


def corpus_example(library: SpriteLibrary, seed: int, index: int) -> CorpusExample:
    """Example number `index` of the stream `seed`.

    Most are captions of scenes that can be trained on. The rest are plain names and keywords of all
    concepts, so that the encoder knows the words for things no picture was ever shown of: scenes
    never hold those. No prompt has the words of an evaluation prompt.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, index, _SALT))))
    language = _draw_language(rng)
    kind = rng.random()
    if kind < _SCENE_SHARE:
        return _scene_example(library, seed, index, language, rng)
    concept = _draw_concept(library, rng)
    if kind < _SCENE_SHARE + _NAME_SHARE:
        return _name_example(concept, language, rng)
    return _keyword_example(concept, language, rng)


def canonical_caption(scene: Scene, prompt: str = "") -> str:
    """The one short English caption of a scene: things, colours, counts, places, background.

    Args:
        prompt: an English prompt for the scene; a background that it leaves out is left out here
            too, as no reader could know it. Empty says everything.
    """
    parts = [_canonical_subject(scene)]
    if scene.skill == "position":
        parts.append(PLACES[scene.objects[0].cell][0])
    background = scene.background.colours
    said = [c for c in background if not prompt or c.replace("gray", "gr") in prompt]
    if len(said) == len(background):
        parts.append(f"on {english.with_article(' and '.join(background))} background")
    return " ".join(parts)


def _canonical_subject(scene: Scene) -> str:
    if scene.word is not None:
        return f'the word "{scene.word.text}" in {scene.word.colour}'
    first = scene.objects[0]
    if scene.skill == "portrait":
        return f"a portrait with {english.listed(scene.traits)}" if scene.traits else "a portrait"
    if scene.skill == "count":
        return english.counted(scene.count, first.name)
    if scene.skill == "two":
        other = english.with_article(scene.objects[1].name)
        return f"{english.with_article(first.name)} {scene.relation} {other}"
    if first.painted and first.colour is not None:
        what = first.name if scene.style == "shape" else f"{first.name} silhouette"
        return english.with_article(f"{first.colour} {what}")
    small = scene.skill == "single" and first.size == "small"
    return english.with_article(f"small {first.name}" if small else first.name)


def _scene_example(
    library: SpriteLibrary, seed: int, index: int, language: str, rng: np.random.Generator
) -> CorpusExample:
    scene = sample_scene(library, seed=seed, index=index, resolution=_RESOLUTION)
    # Icons, and so many silhouettes, have English names only.
    if any(language not in thing.names for thing in scene.objects):
        language = "en"
    length = LENGTHS[int(rng.choice(len(LENGTHS), p=LENGTH_WEIGHTS))]
    way = int(rng.integers(1 << 31))
    prompt = unseen_caption(scene, length=length, language=language, seed=way)
    answer = canonical_caption(scene, prompt.lower() if language == "en" else "")
    return CorpusExample(prompt, answer, language)


def _name_example(concept: Concept, language: str, rng: np.random.Generator) -> CorpusExample:
    language = language if language in concept.names else "en"
    name = concept.names[language]
    if language == "en" and rng.random() < 0.5:
        name = english.with_article(name)
    return CorpusExample(name, english.with_article(concept.name), language)


def _keyword_example(concept: Concept, language: str, rng: np.random.Generator) -> CorpusExample:
    """A name asks for English keywords, or keywords ask for the English name."""
    language = language if language in concept.keywords else "en"
    words = list(concept.keywords.get(language, ()))
    if not words:
        return _name_example(concept, language, rng)
    if rng.random() < 0.5:
        rng.shuffle(words)
        return CorpusExample(", ".join(words[:4]), english.with_article(concept.name), language)
    related = list(concept.keywords.get("en", ()))
    rng.shuffle(related)
    answer = f"{english.with_article(concept.name)}: {', '.join(related[:4])}"
    return CorpusExample(concept.names.get(language, concept.name), answer, language)


def _draw_language(rng: np.random.Generator) -> str:
    """English two times in five; of the others, the measured ones twice as often."""
    if rng.random() < ENGLISH_SHARE:
        return "en"
    others = [
        language
        for language in LANGUAGES[1:]
        for _ in range(2 if language in MEASURED_LANGUAGES else 1)
    ]
    return others[int(rng.integers(len(others)))]


def _draw_concept(library: SpriteLibrary, rng: np.random.Generator) -> Concept:
    """Any concept, held out or not; plain ones three times as often, icons seldom."""
    table = library.name_table
    point = rng.random() * table.cumulative[-1]
    position = min(int(np.searchsorted(table.cumulative, point, "right")), len(table.concepts) - 1)
    return table.concepts[position]


def vocabulary_texts(library: SpriteLibrary, *, num_examples: int = 30_000) -> list[str]:
    """A large sample of everything the encoder will read or write, for pruning its vocabulary.

    All names in all languages, all English keywords, every template word, colours, styles, rendered
    words, common English words, and the first examples of a corpus.
    """
    texts: list[str] = []
    for concept in library.concepts.values():
        for language, name in concept.names.items():
            texts += [name, f" {name}"] if language == "en" else [name]
        texts += [f" {word}" for word in concept.keywords.get("en", ())]
    for phrases in PHRASES.values():
        texts += [text for value in _strings(phrases) for text in (value, f" {value}")]
    words: list[str] = [*COMMON_WORDS, *OBJECT_COLOURS, *BACKGROUND_COLOURS, *COUNT_WORDS, *WORDS]
    words += [name for names in STYLES.values() for name in names]
    words += [place for places in PLACES.values() for place in places]
    for word in words:
        texts += [word, f" {word}", word.capitalize()]
    for example in (corpus_example(library, 0, index) for index in range(num_examples)):
        texts += [example.prompt, example.caption]
    return texts


def _strings(phrases: object) -> Iterator[str]:
    for name in phrases.__dataclass_fields__:  # type: ignore[attr-defined]
        value: str | Sequence[str] = getattr(phrases, name)
        yield from (value,) if isinstance(value, str) else value
