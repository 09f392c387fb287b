"""The languages a caption can be written in."""

from __future__ import annotations

LANGUAGES: tuple[str, ...] = (
    "en", "de", "fr", "es", "pt", "it", "zh", "ja", "ko", "ru", "ar", "hi",
)  # fmt: skip
"""Languages of the text corpus; the denoiser itself only ever sees English."""

MEASURED_LANGUAGES: tuple[str, ...] = ("zh", "fr", "ja", "es", "de")
"""Languages in which prompt following is measured beside English."""
