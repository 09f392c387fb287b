"""Sentence templates and colour words of the languages beyond English.

Names come straight from CLDR, in their dictionary form, so every template is built so that a bare
noun fits: no article, no case that would bend it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COLOUR_ORDER: tuple[str, ...] = (
    "white", "black", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
    "light blue", "beige", "teal",
)  # fmt: skip
"""Order of the colour words below; paint uses the first eleven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """How one language says what a scene holds.

    Attributes:
        background: "{c}" is the colour word; `background_words` are its forms there.
        paint: "{n}" is a name, "{c}" a colour; `paint_words` are the forms there.
        gradient: a background that goes from one colour to another.
        plain: "{n}" is what is shown, "{b}" the background.
        styled: "{t}" is a style's name.
        places: nine places, row by row from the top left.
        placed: "{p}" is a place.
        beside, stacked: "{a}" is left of / above "{z}".
        counts: one to five of "{n}".
        small, silhouette, portrait: as they say; "{n}" is a name.
        word: "{w}" is what is written, "{c}" a colour in its `paint` form.
        styles: words for a 3D, a flat, and a cartoon picture.
    """

    background: str
    background_words: tuple[str, ...]
    paint: str
    paint_words: tuple[str, ...]
    gradient: str
    plain: tuple[str, ...]
    styled: tuple[str, ...]
    places: tuple[str, ...]
    placed: str
    beside: tuple[str, ...]
    stacked: tuple[str, ...]
    counts: tuple[str, ...]
    small: str
    silhouette: str
    word: str
    styles: tuple[str, str, str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


PHRASES: Mapping[str, Phrases] = {
    "de": Phrases(
        background="{c} Hintergrund",
        background_words=_words(
            "weißer, schwarzer, grauer, roter, oranger, gelber,"
            " grüner, blauer, lila, rosa, brauner,"
            " hellblauer, beiger, türkiser"
        ),
        paint="{n} in {c}",
        paint_words=_words("Weiß, Schwarz, Grau, Rot, Orange, Gelb, Grün, Blau, Lila, Rosa, Braun"),
        gradient="Hintergrund mit Farbverlauf",
        plain=("{n}, {b}", "Ein Bild: {n}, {b}", "Bild von: {n}. {b}"),
        styled=("{t}: {n}, {b}", "{n} als {t}, {b}"),
        places=_words(
            "oben links, oben, oben rechts, links, in der Mitte,"
            " rechts, unten links, unten, unten rechts"
        ),
        placed="{n} {p}, {b}",
        beside=("{a} links von {z}, {b}", "links {a}, rechts {z}, {b}"),
        stacked=("{a} über {z}, {b}", "oben {a}, unten {z}, {b}"),
        counts=("ein Mal {n}", "zwei Mal {n}", "drei Mal {n}", "vier Mal {n}", "fünf Mal {n}"),
        small="{n}, klein",
        silhouette="Silhouette: {n}",
        word="das Wort „{w}“, Schrift in {c}",
        styles=("3D-Illustration", "flache Zeichnung", "Cartoon"),
    ),
    "fr": Phrases(
        background="fond {c}",
        background_words=_words(
            "blanc, noir, gris, rouge, orange, jaune, vert,"
            " bleu, violet, rose, marron, bleu clair, beige,"
            " turquoise"
        ),
        paint="{n} de couleur {c}",
        paint_words=_words(
            "blanche, noire, grise, rouge, orange, jaune, verte, bleue, violette, rose, marron"
        ),
        gradient="fond en dégradé",
        plain=("{n} sur {b}", "une image : {n} sur {b}", "{n}, {b}"),
        styled=("{t} : {n} sur {b}", "{n} en {t}, {b}"),
        places=_words(
            "en haut à gauche, en haut, en haut à droite, à gauche,"
            " au centre, à droite, en bas à gauche,"
            " en bas, en bas à droite"
        ),
        placed="{n} {p}, {b}",
        beside=("{a} à gauche, {z} à droite, {b}", "à gauche {a}, à droite {z}, {b}"),
        stacked=("{a} au-dessus, {z} en dessous, {b}", "en haut {a}, en bas {z}, {b}"),
        counts=(
            "{n}, une fois", "{n}, deux fois", "{n}, trois fois", "{n}, quatre fois",
            "{n}, cinq fois",
        ),
        small="{n} en petit",
        silhouette="silhouette : {n}",
        word="le mot « {w} » en lettres de couleur {c}",
        styles=("illustration 3D", "dessin plat", "dessin animé"),
    ),
    "es": Phrases(
        background="fondo {c}",
        background_words=_words(
            "blanco, negro, gris, rojo, naranja, amarillo, verde,"
            " azul, morado, rosa, marrón, azul claro,"
            " beige, turquesa"
        ),
        paint="{n} de color {c}",
        paint_words=_words(
            "blanco, negro, gris, rojo, naranja, amarillo, verde, azul, morado, rosa, marrón"
        ),
        gradient="fondo degradado",
        plain=("{n} sobre {b}", "una imagen: {n} sobre {b}", "{n}, {b}"),
        styled=("{t}: {n} sobre {b}", "{n}, {t}, {b}"),
        places=_words(
            "arriba a la izquierda, arriba, arriba a la derecha, a la izquierda, en el centro,"
            " a la derecha, abajo a la izquierda, abajo, abajo a la derecha"
        ),
        placed="{n} {p}, {b}",
        beside=("{a} a la izquierda, {z} a la derecha, {b}", "{a} a la izquierda de {z}, {b}"),
        stacked=("{a} encima de {z}, {b}", "{a} arriba, {z} abajo, {b}"),
        counts=(
            "{n}, una vez", "{n}, dos veces", "{n}, tres veces", "{n}, cuatro veces",
            "{n}, cinco veces",
        ),
        small="{n} en pequeño",
        silhouette="silueta: {n}",
        word="la palabra «{w}» en letras de color {c}",
        styles=("ilustración 3D", "dibujo plano", "dibujo animado"),
    ),
    "pt": Phrases(
        background="fundo {c}",
        background_words=_words(
            "branco, preto, cinza, vermelho, laranja, amarelo, verde, azul, roxo, rosa, marrom,"
            " azul-claro, bege, turquesa"
        ),
        paint="{n} de cor {c}",
        paint_words=_words(
            "branca, preta, cinza, vermelha, laranja, amarela, verde, azul, roxa, rosa, marrom"
        ),
        gradient="fundo em degradê",
        plain=("{n} sobre {b}", "uma imagem: {n} sobre {b}", "{n}, {b}"),
        styled=("{t}: {n} sobre {b}", "{n}, {t}, {b}"),
        places=_words(
            "no canto superior esquerdo, em cima, no canto superior direito, à esquerda, no centro,"
            " à direita, no canto inferior esquerdo, embaixo, no canto inferior direito"
        ),
        placed="{n} {p}, {b}",
        beside=("{a} à esquerda, {z} à direita, {b}", "{a} à esquerda de {z}, {b}"),
        stacked=("{a} acima de {z}, {b}", "{a} em cima, {z} embaixo, {b}"),
        counts=(
            "{n}, uma vez", "{n}, duas vezes", "{n}, três vezes", "{n}, quatro vezes",
            "{n}, cinco vezes",
        ),
        small="{n} em tamanho pequeno",
        silhouette="silhueta: {n}",
        word="a palavra “{w}” em letras de cor {c}",
        styles=("ilustração 3D", "desenho plano", "desenho animado"),
    ),
    "it": Phrases(
        background="sfondo {c}",
        background_words=_words(
            "bianco, nero, grigio, rosso, arancione, giallo, verde,"
            " blu, viola, rosa, marrone, azzurro,"
            " beige, turchese"
        ),
        paint="{n} di colore {c}",
        paint_words=_words(
            "bianco, nero, grigio, rosso, arancione, giallo, verde, blu, viola, rosa, marrone"
        ),
        gradient="sfondo sfumato",
        plain=("{n} su {b}", "un’immagine: {n} su {b}", "{n}, {b}"),
        styled=("{t}: {n} su {b}", "{n}, {t}, {b}"),
        places=_words(
            "in alto a sinistra, in alto, in alto a destra, a sinistra, al centro, a destra,"
            " in basso a sinistra, in basso, in basso a destra"
        ),
        placed="{n} {p}, {b}",
        beside=("{a} a sinistra, {z} a destra, {b}", "a sinistra {a}, a destra {z}, {b}"),
        stacked=("{a} sopra, {z} sotto, {b}", "in alto {a}, in basso {z}, {b}"),
        counts=(
            "{n}, una volta", "{n}, due volte", "{n}, tre volte", "{n}, quattro volte",
            "{n}, cinque volte",
        ),
        small="{n} in piccolo",
        silhouette="sagoma: {n}",
        word="la parola «{w}» in lettere di colore {c}",
        styles=("illustrazione 3D", "disegno piatto", "cartone animato"),
    ),
    "zh": Phrases(
        background="{c}背景",
        background_words=_words(
            "白色, 黑色, 灰色, 红色, 橙色, 黄色, 绿色, 蓝色, 紫色, 粉色, 棕色, 浅蓝色, 米色, 青色"
        ),
        paint="{c}的{n}",
        paint_words=_words("白色, 黑色, 灰色, 红色, 橙色, 黄色, 绿色, 蓝色, 紫色, 粉色, 棕色"),
        gradient="渐变背景",
        plain=("{b}上的{n}", "{n},{b}", "一张图片:{n},{b}"),
        styled=("{t}:{n},{b}", "{b}上的{n},{t}"),
        places=_words("左上角, 上方, 右上角, 左边, 中间, 右边, 左下角, 下方, 右下角"),
        placed="{n}在{p},{b}",
        beside=("{a}在{z}的左边,{b}", "左边是{a},右边是{z},{b}"),
        stacked=("{a}在{z}的上面,{b}", "上面是{a},下面是{z},{b}"),
        counts=("一个{n}", "两个{n}", "三个{n}", "四个{n}", "五个{n}"),
        small="小小的{n}",
        silhouette="{n}剪影",
        word="{c}文字“{w}”",
        styles=("3D插画", "扁平插画", "卡通画"),
    ),
    "ja": Phrases(
        background="{c}の背景",
        background_words=_words(
            "白, 黒, グレー, 赤, オレンジ色, 黄色, 緑, 青, 紫, ピンク, 茶色, 水色, ベージュ, 青緑"
        ),
        paint="{c}の{n}",
        paint_words=_words("白, 黒, グレー, 赤, オレンジ色, 黄色, 緑, 青, 紫, ピンク, 茶色"),
        gradient="グラデーションの背景",
        plain=("{b}に{n}", "{n}、{b}", "{n}の絵、{b}"),
        styled=("{n}の{t}、{b}", "{t}:{n}、{b}"),
        places=_words("左上, 上, 右上, 左, 中央, 右, 左下, 下, 右下"),
        placed="{p}に{n}、{b}",
        beside=("{z}の左に{a}、{b}", "左に{a}、右に{z}、{b}"),
        stacked=("{z}の上に{a}、{b}", "上に{a}、下に{z}、{b}"),
        counts=("{n}が一つ", "{n}が二つ", "{n}が三つ", "{n}が四つ", "{n}が五つ"),
        small="小さな{n}",
        silhouette="{n}のシルエット",
        word="{c}の文字「{w}」",
        styles=("3Dイラスト", "フラットなイラスト", "マンガ風の絵"),
    ),
    "ko": Phrases(
        background="{c} 배경",
        background_words=_words(
            "흰색, 검은색, 회색, 빨간색, 주황색, 노란색, 초록색,"
            " 파란색, 보라색, 분홍색, 갈색, 하늘색,"
            " 베이지색, 청록색"
        ),
        paint="{c} {n}",
        paint_words=_words(
            "흰색, 검은색, 회색, 빨간색, 주황색, 노란색, 초록색, 파란색, 보라색, 분홍색, 갈색"
        ),
        gradient="그라데이션 배경",
        plain=("{b}의 {n}", "{n}, {b}", "{n} 그림, {b}"),
        styled=("{n} {t}, {b}", "{t}: {n}, {b}"),
        places=_words(
            "왼쪽 위, 위쪽, 오른쪽 위, 왼쪽, 가운데,"
            " 오른쪽, 왼쪽 아래, 아래쪽, 오른쪽 아래"
        ),
        placed="{p}에 {n}, {b}",
        beside=("{z} 왼쪽에 {a}, {b}", "왼쪽에 {a}, 오른쪽에 {z}, {b}"),
        stacked=("{z} 위에 {a}, {b}", "위에 {a}, 아래에 {z}, {b}"),
        counts=("{n} 한 개", "{n} 두 개", "{n} 세 개", "{n} 네 개", "{n} 다섯 개"),
        small="작은 {n}",
        silhouette="{n} 실루엣",
        word="{c} 글자 “{w}”",
        styles=("3D 일러스트", "평면 그림", "만화 그림"),
    ),
    "ru": Phrases(
        background="{c} фон",
        background_words=_words(
            "белый, чёрный, серый, красный, оранжевый, жёлтый, зелёный, синий, фиолетовый, розовый,"
            " коричневый, голубой, бежевый, бирюзовый"
        ),
        paint="{n} {c} цвета",
        paint_words=_words(
            "белого, чёрного, серого, красного, оранжевого, жёлтого, зелёного, синего, фиолетового,"
            " розового, коричневого"
        ),
        gradient="фон с градиентом",
        plain=("{n}, {b}", "картинка: {n}, {b}", "изображение: {n}. {b}"),
        styled=("{t}: {n}, {b}", "{n}, {t}, {b}"),
        places=_words(
            "слева вверху, вверху, справа вверху, слева, в центре,"
            " справа, слева внизу, внизу, справа внизу"
        ),
        placed="{n} {p}, {b}",
        beside=("слева {a}, справа {z}, {b}", "{a} слева, {z} справа, {b}"),
        stacked=("сверху {a}, снизу {z}, {b}", "{a} вверху, {z} внизу, {b}"),
        counts=(
            "{n}, одна штука", "{n}, две штуки", "{n}, три штуки", "{n}, четыре штуки",
            "{n}, пять штук",
        ),
        small="{n}, маленький размер",
        silhouette="силуэт: {n}",
        word="слово «{w}» буквами {c} цвета",
        styles=("3D-иллюстрация", "плоский рисунок", "мультяшный рисунок"),
    ),
    "ar": Phrases(
        background="خلفية {c}",
        background_words=_words(
            "بيضاء, سوداء, رمادية, حمراء, برتقالية, صفراء, خضراء, زرقاء, بنفسجية, وردية, بنية,"
            " زرقاء فاتحة, بيج, فيروزية"
        ),
        paint="{n} باللون {c}",
        paint_words=_words(
            "الأبيض, الأسود, الرمادي, الأحمر, البرتقالي, الأصفر, الأخضر, الأزرق, البنفسجي, الوردي,"
            " البني"
        ),
        gradient="خلفية متدرجة",
        plain=("{n} على {b}", "صورة: {n} على {b}", "{n}، {b}"),
        styled=("{t}: {n} على {b}", "{n}، {t}، {b}"),
        places=_words(
            "أعلى اليسار, في الأعلى, أعلى اليمين, على اليسار, في الوسط, على اليمين, أسفل اليسار,"
            " في الأسفل, أسفل اليمين"
        ),
        placed="{n} {p}، {b}",
        beside=("{a} على يسار {z}، {b}", "على اليسار {a}، على اليمين {z}، {b}"),
        stacked=("{a} فوق {z}، {b}", "في الأعلى {a}، في الأسفل {z}، {b}"),
        counts=(
            "{n} مرة واحدة", "{n} مرتين", "{n} ثلاث مرات", "{n} أربع مرات", "{n} خمس مرات",
        ),
        small="{n} بحجم صغير",
        silhouette="ظل: {n}",
        word="كلمة «{w}» باللون {c}",
        styles=("رسم ثلاثي الأبعاد", "رسم مسطح", "رسم كرتوني"),
    ),
    "hi": Phrases(
        background="{c} पृष्ठभूमि",
        background_words=_words(
            "सफ़ेद, काली, धूसर, लाल, नारंगी, पीली, हरी, नीली,"
            " बैंगनी, गुलाबी, भूरी, हल्की नीली, बेज, फ़िरोज़ी"
        ),
        paint="{c} रंग में {n}",
        paint_words=_words("सफ़ेद, काले, धूसर, लाल, नारंगी, पीले, हरे, नीले, बैंगनी, गुलाबी, भूरे"),
        gradient="ढाल वाली पृष्ठभूमि",
        plain=("{b} पर {n}", "{n}, {b}", "चित्र: {n}, {b}"),
        styled=("{t}: {n}, {b}", "{n}, {t}, {b}"),
        places=_words(
            "ऊपर बाईं ओर, ऊपर, ऊपर दाईं ओर, बाईं ओर, बीच में,"
            " दाईं ओर, नीचे बाईं ओर, नीचे, नीचे दाईं ओर"
        ),
        placed="{p} {n}, {b}",
        beside=("बाईं ओर {a}, दाईं ओर {z}, {b}", "{a} बाईं ओर और {z} दाईं ओर, {b}"),
        stacked=("ऊपर {a}, नीचे {z}, {b}", "{a} ऊपर और {z} नीचे, {b}"),
        counts=("एक {n}", "दो {n}", "तीन {n}", "चार {n}", "पाँच {n}"),
        small="छोटे आकार में {n}",
        silhouette="{n} की छाया",
        word="{c} रंग में शब्द “{w}”",
        styles=("3D चित्र", "सपाट चित्र", "कार्टून"),
    ),
}  # fmt: skip
