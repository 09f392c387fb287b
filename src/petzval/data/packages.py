"""The pinned packages that pictures and names come from, and what their makers ask for."""

from __future__ import annotations

from dataclasses import dataclass

from petzval.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedSet:
    """One npm package at one version, and what its maker asks for.

    Attributes:
        name: package name.
        version: exact version.
        sha256: of the package archive; a different archive is refused.
        licence: SPDX identifier of the art or text inside.
        author: whom to credit.
        title: name of the work.
        use: "train", "evaluate" (a style never trained on) or "names".
    """

    name: str
    version: str
    sha256: str
    licence: str
    author: str
    title: str
    use: str = "train"

    @property
    def archive(self) -> str:
        """File name of the packed archive."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


def _iconify(
    prefix: str,
    version: str,
    sha256: str,
    licence: str,
    author: str,
    title: str,
    use: str = "train",
) -> PackagedSet:
    return PackagedSet(
        name=f"@iconify-json/{prefix}", version=version, sha256=sha256, licence=licence,
        author=author, title=title, use=use,
    )  # fmt: skip


PACKAGES: tuple[PackagedSet, ...] = (
    PackagedSet(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        licence="MIT",
        author="Microsoft Corporation",
        title="Fluent Emoji (3D)",
    ),
    _iconify(
        "noto", "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Apache-2.0", "Google", "Noto Emoji",
    ),
    _iconify(
        "noto-v1", "1.2.5",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "Apache-2.0", "Google", "Noto Emoji (version 1)",
    ),
    _iconify(
        "fluent-emoji", "1.2.7",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
        "MIT", "Microsoft Corporation", "Fluent Emoji",
    ),
    _iconify(
        "fluent-emoji-flat", "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "MIT", "Microsoft Corporation", "Fluent Emoji (flat)",
    ),
    _iconify(
        "fxemoji", "1.2.2",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Apache-2.0", "Mozilla", "Firefox OS Emoji",
    ),
    _iconify(
        "twemoji", "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "CC-BY-4.0", "Twitter and contributors", "Twemoji",
    ),
    _iconify(
        "emojione", "1.2.3",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "CC-BY-4.0", "Emoji One", "Emoji One (version 2)", "evaluate",
    ),
    PackagedSet(
        name="openmoji",
        version="17.0.0",
        sha256="55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
        licence="CC-BY-SA-4.0",
        author="OpenMoji contributors",
        title="OpenMoji",
        use="evaluate",
    ),
    _iconify(
        "fluent-color", "1.2.21",
        "fa2ddaaac7a2a7b902659cea1b5b8c03017ce2ae56295138876b86a36177dfbe",
        "MIT", "Microsoft Corporation", "Fluent UI System Color Icons",
    ),
    _iconify(
        "flat-color-icons", "1.2.3",
        "d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786",
        "MIT", "Icons8", "Flat Color Icons",
    ),
    _iconify(
        "meteocons", "1.2.4",
        "1c0b49c6375c0e35c3ed65db6e41e9811a0cbd2368c13ee27f870f60c6185ff0",
        "MIT", "Bas Milius", "Meteocons",
    ),
    _iconify(
        "circle-flags", "1.2.11",
        "ee9a03f6a6fdd79cc6325bdcb7bb93b83d331e60b16e226188f154a64b6bb4a9",
        "MIT", "HatScripts", "Circle Flags",
    ),
    _iconify(
        "game-icons", "1.2.4",
        "f5758efb34d91c4f50b941f355f16ee73938625e5996fabc25171288404460a4",
        "CC-BY-3.0", "Lorc, Delapouite and contributors", "Game Icons",
    ),
    PackagedSet(
        name="@dicebear/core",
        version="9.4.3",
        sha256="6ca7dae651c74ad547e548fbe7c41f49aaa377cf4617259277518389bf6b1a3d",
        licence="MIT",
        author="Florian Körner and contributors",
        title="DiceBear library",
    ),
    PackagedSet(
        name="@dicebear/open-peeps",
        version="9.4.3",
        sha256="65b664ec00dc69c068051461f2b5bd97c8335af676e36c284e906a3017c23d4f",
        licence="CC0-1.0",
        author="Pablo Stanley",
        title="Open Peeps",
    ),
    PackagedSet(
        name="@dicebear/personas",
        version="9.4.3",
        sha256="6f5b4765c4d54444ab0330c4a89da53636662de3b04118b827f005a31332d002",
        licence="CC-BY-4.0",
        author="Draftbit",
        title="Personas",
    ),
    PackagedSet(
        name="@dicebear/adventurer",
        version="9.4.3",
        sha256="6edeac04f94ef6177c946918dce012e530200dfcc274b4f954239e33ecbe590c",
        licence="CC-BY-4.0",
        author="Lisa Wischofsky",
        title="Adventurer",
    ),
    PackagedSet(
        name="@dicebear/big-smile",
        version="9.4.3",
        sha256="8dbd7b96c9ceaf9dd7c280cdae4f0bb3e43ab2798b7bedbe355fbb3ce30e87bb",
        licence="CC-BY-4.0",
        author="Ashley Seo",
        title="Custom Avatar",
    ),
    PackagedSet(
        name="@dicebear/toon-head",
        version="9.4.3",
        sha256="b9cd3b5def9fb2c37a9acba2e4b9bd00268b6eaff705d596756e8d921a4580c8",
        licence="CC-BY-4.0",
        author="Johan Melin",
        title="Toon Head",
    ),
    PackagedSet(
        name="cldr-annotations-full",
        version="48.2.0",
        sha256="28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
        licence="Unicode-3.0",
        author="Unicode, Inc.",
        title="CLDR annotations",
        use="names",
    ),
    PackagedSet(
        name="cldr-annotations-derived-full",
        version="48.2.0",
        sha256="4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e",
        licence="Unicode-3.0",
        author="Unicode, Inc.",
        title="CLDR derived annotations",
        use="names",
    ),
    PackagedSet(
        name="emojibase-data",
        version="17.0.0",
        sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        licence="MIT",
        author="Miles Johnson",
        title="Emojibase data",
        use="names",
    ),
)  # fmt: skip


def package(name: str) -> PackagedSet:
    """The pinned package called `name`."""
    for candidate in PACKAGES:
        if candidate.name == name:
            return candidate
    raise DataError(
        f"no packaged set is called {name!r}",
        f"known sets: {', '.join(p.name for p in PACKAGES)}",
    )
