"""The text corpus: endless, the same every time, and silent about held-out things in scenes."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from petzval.data.languages import LANGUAGES, MEASURED_LANGUAGES
from petzval.data.prompts import is_evaluation_text
from petzval.data.sprites import SpriteLibrary
from petzval.data.texts import corpus_example, corpus_examples, vocabulary_texts


def test_the_stream_is_its_numbered_examples(library: SpriteLibrary) -> None:
    streamed = list(islice(corpus_examples(library, 7, start=3), 20))
    assert streamed == [corpus_example(library, 7, index) for index in range(3, 23)]
    assert streamed != list(islice(corpus_examples(library, 8, start=3), 20))


def test_languages_are_mixed_as_promised(library: SpriteLibrary) -> None:
    examples = list(islice(corpus_examples(library, 0), 900))
    counts = Counter(example.language for example in examples)
    assert set(counts) == set(LANGUAGES)
    # Icons without other names turn to English, so it has somewhat more than its share.
    assert 0.36 < counts["en"] / len(examples) < 0.56
    rest = set(LANGUAGES) - {"en", *MEASURED_LANGUAGES}
    measured = [counts[key] for key in MEASURED_LANGUAGES if key != "en"]
    others = [counts[key] for key in rest]
    assert sum(measured) / len(measured) > 1.2 * sum(others) / len(others)


def test_every_answer_is_english_and_every_prompt_says_something(library: SpriteLibrary) -> None:
    for example in islice(corpus_examples(library, 1), 200):
        assert example.prompt.strip() and example.caption.isascii()
        assert not is_evaluation_text(example.prompt)


def test_scenes_never_hold_a_held_out_thing(library: SpriteLibrary) -> None:
    held_out = [concept for concept in library.concepts.values() if concept.held_out]
    assert held_out
    names = {concept.name for concept in held_out}
    known = False
    for example in islice(corpus_examples(library, 2), 700):
        if any(name in example.caption for name in names):
            known = True
            # A bare name or its keywords, never a scene.
            assert "background" not in example.caption
            assert " of " not in example.caption and " on " not in example.caption
    assert known


def test_vocabulary_texts_hold_all_that_is_read_and_written(library: SpriteLibrary) -> None:
    texts = vocabulary_texts(library, num_examples=50)
    joined = "\n".join(texts)
    for concept in library.concepts.values():
        assert all(name in joined for name in concept.names.values())
    for word in (" background", "türkiser", "背景", " beautiful", "HELLO", "glossy 3D"):
        assert word in joined
    example = corpus_example(library, 0, 49)
    assert example.prompt in texts and example.caption in texts
