"""Say what is in a scene: four lengths in English, one in eleven other languages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from petzval.data import english
from petzval.data.caption_languages import translated_caption
from petzval.data.ground_truth import Background, Scene, SceneObject
from petzval.data.languages import LANGUAGES
from petzval.data.prompts import is_evaluation_text
from petzval.errors import DataError

LENGTHS: tuple[str, ...] = ("tag", "short", "medium", "dense")
LENGTH_WEIGHTS: tuple[float, ...] = (0.12, 0.33, 0.38, 0.17)
DEFAULT_STYLE = "fluent-3d"
"""What a prompt that names no style means."""

_ALWAYS_SAID = 0.9
_DEFAULT_STYLE_SAID = 0.4
_TRAINING_SALT = 99
_ANOTHER_WAY = 1 << 32


def caption(scene: Scene, *, length: str = "medium", language: str = "en", seed: int = 0) -> str:
    """A caption of a scene: the same arguments, the same words.

    Everything a caption says is true; it need not say everything. Styles other than the glossy 3D
    one are nearly always named, so that a prompt without a style means that one.

    Args:
        length: "tag", "short", "medium" or "dense"; other languages have one length only.
        language: one of `petzval.data.languages.LANGUAGES`.
        seed: picks among the ways of saying it.

    Raises:
        DataError: the length or the language is unknown.
    """
    if length not in LENGTHS:
        raise DataError(f"unknown caption length {length!r}", f"lengths: {', '.join(LENGTHS)}")
    if language not in LANGUAGES:
        raise DataError(f"unknown language {language!r}", f"languages: {', '.join(LANGUAGES)}")
    key = (seed, scene.seed, scene.index, LENGTHS.index(length), LANGUAGES.index(language))
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    if language != "en":
        return translated_caption(scene, language, rng)
    say = _Speaker(scene, rng)
    return {"tag": say.tag, "short": say.short, "medium": say.medium, "dense": say.dense}[length]()


def training_caption(scene: Scene, *, seed: int = 0) -> str:
    """An English caption whose length is drawn as the denoiser's training draws it.

    It never has the words of an evaluation prompt.
    """
    key = (seed, scene.seed, scene.index, _TRAINING_SALT)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    length = LENGTHS[int(rng.choice(len(LENGTHS), p=LENGTH_WEIGHTS))]
    return unseen_caption(scene, length=length, seed=seed)


def unseen_caption(
    scene: Scene, *, length: str = "medium", language: str = "en", seed: int = 0
) -> str:
    """As `caption`, but said in another way if it has the words of an evaluation prompt."""
    text = caption(scene, length=length, language=language, seed=seed)
    for attempt in range(1, 20):
        if not is_evaluation_text(text):
            return text
        again = seed + attempt * _ANOTHER_WAY
        text = caption(scene, length=length, language=language, seed=again)
    return caption(scene, length="dense", seed=seed)


class _Speaker:
    """One way of talking about one scene."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene = scene
        self.rng = rng
        self.grey = "grey" if rng.random() < 0.2 else "gray"

    def tag(self) -> str:
        """ "cat, 3D render, blue background"."""
        scene = self.scene
        parts = [self._tag_subject()]
        if self._says_style():
            parts.append(self._style_name())
        if scene.skill == "position":
            parts.append(english.PLACES[scene.objects[0].cell][0].split(" the ")[-1])
        if self._chance(0.55):
            parts.append(f"{self._background_name()} background")
        return ", ".join(parts)

    def short(self) -> str:
        """ "a cat on a blue background"."""
        phrase = self._placed_subject()
        if self._says_style():
            phrase = self._styled(phrase)
        return f"{phrase} {self._background()}" if self._chance(0.7) else phrase

    def medium(self) -> str:
        """ "A glossy 3D illustration of a cat on a plain blue background."."""
        subject, background = self._placed_subject(), self._background()
        if not self._says_style():
            pattern = self._pick(
                "{s} {b}.", "A picture of {s} {b}.", "{s}, {n} background.", "An image of {s} {b}."
            )
        elif self.scene.style in {"silhouette", "shape"}:
            pattern = self._pick("{s} {b}.", "A picture of {s} {b}.", "{s}, {n} background.")
        else:
            pattern = self._pick(
                "{t} of {s} {b}.", "{t} of {s} {b}.", "{s} {b}, {t}.", "{t}: {s}, {n} background.",
                "{s} {b}, drawn as {t}.", "{t} of {s}. The background is {n}.",
            )  # fmt: skip
        text = pattern.format(
            s=subject, b=background, n=self._background_name(), t=self._style_phrase()
        )
        return _sentence(text)

    def dense(self) -> str:
        """Several sentences that name all there is to know."""
        sentences = [self._opening(), *self._details(), self._about_background()]
        return " ".join(_sentence(sentence) for sentence in sentences if sentence)

    # ── pieces ──────────────────────────────────────────────────────────────────────────────

    def _pick(self, *choices: str) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _says_style(self) -> bool:
        if self.scene.style in {"", "silhouette", "shape"} or self.scene.skill == "portrait":
            return False
        default = self.scene.style == DEFAULT_STYLE
        return self._chance(_DEFAULT_STYLE_SAID if default else _ALWAYS_SAID)

    def _style_name(self) -> str:
        names = english.STYLES.get(self.scene.style, ("illustration",))
        return names[0] if self._chance(0.5) else self._pick(*names)

    def _style_phrase(self) -> str:
        return english.with_article(self._style_name())

    def _styled(self, phrase: str) -> str:
        return f"{self._style_phrase()} of {phrase}"

    def _colour_word(self, colour: str) -> str:
        return self.grey if colour == "gray" else colour

    def _background_name(self) -> str:
        background = self.scene.background
        words = [self._colour_word(colour) for colour in background.colours]
        return words[0] if len(words) == 1 else f"{words[0]} to {words[1]} gradient"

    def _background(self) -> str:
        name = self._background_name()
        if self.scene.background.kind == "gradient":
            return f"on {english.with_article(name)} background"
        pattern = self._pick(
            "on {a} background", "on {a} background", "on {a} background", "against {a} background",
            "on a plain {n} background", "on a solid {n} background", "in front of {a} background",
        )  # fmt: skip
        return pattern.format(a=english.with_article(name), n=name)

    def _noun(self, thing: SceneObject, *, extra: str = "") -> str:
        words = [extra] if extra else []
        colour = thing.colour
        if colour and not english.has_colour_word(thing.name) and self._chance(0.15):
            words.append(self._colour_word(colour))
        return english.with_article(" ".join([*words, thing.name]))

    def _subject(self) -> str:
        scene = self.scene
        if scene.word is not None:
            return self._word_subject()
        if scene.skill == "portrait":
            return self._portrait_subject()
        if scene.skill == "colour":
            return self._painted_subject(scene.objects[0])
        if scene.skill == "two":
            return self._pair_subject()
        if scene.skill == "count":
            return self._counted_subject()
        thing = scene.objects[0]
        small = scene.skill == "single" and thing.size == "small"
        return self._noun(thing, extra=self._pick("small", "tiny") if small else "")

    def _placed_subject(self) -> str:
        subject = self._subject()
        if self.scene.skill == "position":
            return f"{subject} {self._pick(*english.PLACES[self.scene.objects[0].cell])}"
        return subject

    def _tag_subject(self) -> str:
        scene = self.scene
        if scene.word is not None:
            return f'word "{scene.word.text}" in {self._colour_word(scene.word.colour)}'
        if scene.skill == "portrait":
            return ", ".join(("portrait", *scene.traits[:2]))
        if scene.skill == "count":
            return self._counted_subject()
        if scene.skill == "two":
            return self._pair_subject()
        thing = scene.objects[0]
        if thing.painted and thing.colour is not None:
            colour = self._colour_word(thing.colour)
            shape = scene.style == "shape"
            return f"{colour} {thing.name}" if shape else f"{colour} {thing.name} silhouette"
        if scene.skill == "single" and thing.size == "small":
            return f"small {thing.name}"
        return thing.name

    def _word_subject(self) -> str:
        word = self.scene.word
        assert word is not None
        colour = self._colour_word(word.colour)
        return self._pick(
            f'the word "{word.text}" in {colour} letters',
            f'{colour} text that says "{word.text}"',
            f'the text "{word.text}" written in {colour}',
        )

    def _portrait_subject(self) -> str:
        style = self._style_phrase()
        traits = english.listed(self.scene.traits)
        return f"{style} of a person with {traits}" if traits else f"{style} of a person"

    def _painted_subject(self, thing: SceneObject) -> str:
        assert thing.colour is not None
        colour = self._colour_word(thing.colour)
        if self.scene.style == "shape":
            return english.with_article(f"{colour} {thing.name}")
        noun = english.with_article(thing.name)
        return self._pick(
            f"{english.with_article(colour)} silhouette of {noun}",
            f"{english.with_article(colour)} {thing.name} silhouette",
            f"the silhouette of {noun} in {colour}",
        )

    def _pair_subject(self) -> str:
        first, second = (self._noun(thing) for thing in self.scene.objects)
        said = {
            "left of": ("to the left of", "left of"),
            "right of": ("to the right of", "right of"),
            "above": ("above", "over"),
            "below": ("below", "under"),
        }[self.scene.relation]
        return f"{first} {self._pick(*said)} {second}"

    def _counted_subject(self) -> str:
        count, name = self.scene.count, self.scene.objects[0].name
        if count == 1:
            return self._pick(f"one {name}", f"a single {name}")
        return english.counted(count, name)

    def _opening(self) -> str:
        subject = self._placed_subject()
        if self.scene.style in {"", "silhouette", "shape"} or self.scene.skill == "portrait":
            return self._pick("The picture shows {s}", "This is a picture of {s}").format(s=subject)
        pattern = self._pick(
            "{t} of {s}", "The picture shows {s}, drawn as {t}", "This is {t} that shows {s}"
        )
        return pattern.format(s=subject, t=self._style_phrase())

    def _details(self) -> Sequence[str]:
        scene = self.scene
        if scene.skill in {"single", "position"}:
            return (self._about_one(scene.objects[0]),)
        if scene.skill == "two":
            return tuple(self._about_colour(thing) for thing in scene.objects)
        if scene.skill == "count" and scene.count > 1:
            return (f"There are exactly {english.COUNT_WORDS[scene.count]} of them",)
        return ()

    def _about_one(self, thing: SceneObject) -> str:
        place = self._pick(*english.PLACES[thing.cell])
        extent = {
            "small": "is small and sits", "medium": "is of medium size and sits",
            "large": "is large and sits",
        }[thing.size]  # fmt: skip
        colour = ""
        if thing.colour and not english.has_colour_word(thing.name):
            colour = f"is mostly {self._colour_word(thing.colour)}, "
        return f"It {colour}{extent} {place}"

    def _about_colour(self, thing: SceneObject) -> str:
        if not thing.colour or english.has_colour_word(thing.name):
            return ""
        verb = "are" if english.with_article(thing.name) == thing.name else "is"
        return f"The {thing.name} {verb} mostly {self._colour_word(thing.colour)}"

    def _about_background(self) -> str:
        background: Background = self.scene.background
        words = [self._colour_word(colour) for colour in background.colours]
        if background.kind == "plain":
            return self._pick("The background is plain {}", "Behind it is a solid {} background",
                              "The background is {}").format(words[0])  # fmt: skip
        ways = "from top to bottom" if background.direction == "vertical" else "from left to right"
        return f"The background is a gradient from {words[0]} to {words[1]}, {ways}"


def _sentence(text: str) -> str:
    """First letter upper case, one full stop at the end."""
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", '."')) else f"{text}."
