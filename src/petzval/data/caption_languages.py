"""Captions in the eleven languages beyond English, of medium length."""

from __future__ import annotations

import numpy as np

from petzval.data.ground_truth import Scene, SceneObject
from petzval.data.phrases import COLOUR_ORDER, PHRASES, Phrases

_STYLE_CLASSES = {
    "fluent-3d": 0, "fluent": 1, "fluent-flat": 1, "twemoji": 1, "colour-icon": 1, "flat-icon": 1,
    "weather-icon": 1, "noto": 2, "noto-v1": 2, "fxemoji": 2, "clip-art": 2,
}  # fmt: skip


def translated_caption(scene: Scene, language: str, rng: np.random.Generator) -> str:
    """One way of saying in `language` what the scene holds, with its background."""
    phrases = PHRASES[language]
    background = _background(scene, phrases)
    if scene.word is not None:
        colour = phrases.paint_words[COLOUR_ORDER.index(scene.word.colour)]
        subject = phrases.word.format(w=scene.word.text, c=colour)
        return _pick(rng, phrases.plain).format(n=subject, b=background)
    names = [_name(thing, language, phrases, scene) for thing in scene.objects]
    if scene.skill == "two":
        return _pair(scene, phrases, names, background, rng)
    if scene.skill == "position":
        row, column = scene.objects[0].cell
        place = phrases.places[row * 3 + column]
        return phrases.placed.format(n=names[0], p=place, b=background)
    subject = names[0]
    if scene.skill == "count":
        subject = phrases.counts[scene.count - 1].format(n=names[0])
    elif scene.skill == "single" and scene.objects[0].size == "small":
        subject = phrases.small.format(n=names[0])
    style = _STYLE_CLASSES.get(scene.style)
    if style is not None and rng.random() < (0.3 if style == 0 else 0.7):
        return _pick(rng, phrases.styled).format(n=subject, b=background, t=phrases.styles[style])
    return _pick(rng, phrases.plain).format(n=subject, b=background)


def background_phrase(language: str, colour: str) -> str:
    """ "blauer Hintergrund" for ("de", "blue")."""
    phrases = PHRASES[language]
    return phrases.background.format(c=phrases.background_words[COLOUR_ORDER.index(colour)])


def painted_phrase(language: str, name: str, colour: str) -> str:
    """ "Kreis in Blau" for ("de", "Kreis", "blue"); colours are the eleven basic ones."""
    phrases = PHRASES[language]
    return phrases.paint.format(n=name, c=phrases.paint_words[COLOUR_ORDER.index(colour)])


def _background(scene: Scene, phrases: Phrases) -> str:
    background = scene.background
    if background.kind == "gradient":
        return phrases.gradient
    word = phrases.background_words[COLOUR_ORDER.index(background.colours[0])]
    return phrases.background.format(c=word)


def _name(thing: SceneObject, language: str, phrases: Phrases, scene: Scene) -> str:
    name = thing.names.get(language, thing.name)
    if not thing.painted or thing.colour is None:
        return name
    if scene.style != "shape":
        name = phrases.silhouette.format(n=name)
    colour = phrases.paint_words[COLOUR_ORDER.index(thing.colour)]
    return phrases.paint.format(n=name, c=colour)


def _pair(
    scene: Scene, phrases: Phrases, names: list[str], background: str, rng: np.random.Generator
) -> str:
    first, second = names
    if scene.relation in {"right of", "below"}:
        first, second = second, first
    patterns = phrases.beside if scene.relation in {"left of", "right of"} else phrases.stacked
    return _pick(rng, patterns).format(a=first, z=second, b=background)


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]
