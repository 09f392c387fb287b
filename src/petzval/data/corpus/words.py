"""What rendered texts say: everyday words of signs, menus and posters in a dozen languages.

Only scripts that need no joining and run from left to right, since text is laid out letter by
letter: Arabic, Hebrew and the Indic scripts would come out wrong and are therefore left out.
"""

from __future__ import annotations

from collections.abc import Mapping


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


BUILT_IN_WORDS: Mapping[str, tuple[str, ...]] = {
    "en": _words(
        """
        open closed welcome exit entrance sale today coffee bakery market garden library museum
        station hotel music summer winter morning evening fresh bread river bridge harbour north
        south please quiet thank you happy birthday grand opening free ticket platform menu soup
        special dream travel light shadow silver golden street theatre
        """
    ),
    "de": _words(
        """
        geöffnet geschlossen willkommen ausgang eingang heute frühstück bäckerei markt garten
        bücherei bahnhof straße brücke hafen grüße schön größe weiß musik sommer winter morgen
        abend frisch brot fluss norden süden bitte ruhe danke
        """
    ),
    "fr": _words(
        """
        ouvert fermé bienvenue sortie entrée aujourd’hui café boulangerie marché jardin
        bibliothèque musée gare hôtel musique été hiver matin soirée fraîche pain rivière pont
        nord sud silence merci fête théâtre rêve lumière forêt
        """
    ),
    "es": _words(
        """
        abierto cerrado bienvenidos salida entrada hoy café panadería mercado jardín biblioteca
        museo estación música verano invierno mañana noche pan río puente norte sur silencio
        gracias cumpleaños niño año corazón luz
        """
    ),
    "pl": _words(
        """
        otwarte zamknięte witamy wyjście wejście dziś kawa piekarnia rynek ogród książka muzeum
        dworzec muzyka lato zima świeży chleb rzeka most północ południe cisza dziękuję źródło
        łódka miłość
        """
    ),
    "tr": _words(
        """
        açık kapalı hoşgeldiniz çıkış giriş bugün kahve çarşı bahçe müze istasyon müzik yaz kış
        taze ekmek köprü kuzey güney lütfen teşekkürler ışık gölge şehir
        """
    ),
    "ru": _words(
        """
        открыто закрыто добро пожаловать выход вход сегодня кофе пекарня рынок сад библиотека
        музей вокзал музыка лето зима утро вечер свежий хлеб река мост север юг тишина спасибо
        мечта свет
        """
    ),
    "el": _words(
        """
        ανοιχτό κλειστό καλωσήρθατε έξοδος είσοδος σήμερα καφές φούρνος αγορά κήπος βιβλιοθήκη
        μουσείο σταθμός μουσική καλοκαίρι χειμώνας πρωί βράδυ ψωμί ποτάμι γέφυρα ευχαριστώ φως
        θάλασσα
        """
    ),
    "hy": _words(
        """
        բաց փակ ելք մուտք այսօր սուրճ հաց շուկա այգի գիրք երաժշտություն լույս
        """
    ),
    "ka": _words(
        """
        ღია დახურული გასასვლელი შესასვლელი დღეს ყავა პური ბაზარი ბაღი წიგნი მუსიკა
        """
    ),
    "zh": _words(
        """
        营业 欢迎光临 出口 入口 今天 咖啡 面包 市场 花园 图书馆 博物馆 车站 音乐 夏天 冬天 早上
        晚上 河流 大桥 北 南 安静 谢谢 生日快乐 梦想 光
        """
    ),
    "ja": _words(
        """
        営業中 ようこそ 出口 入口 今日 コーヒー パン 市場 庭 図書館 博物館 駅 音楽 夏 冬 朝 夜
        川 橋 北 南 静かに ありがとう おめでとう 夢 ひかり
        """
    ),
    "ko": _words(
        """
        영업중 환영합니다 출구 입구 오늘 커피 빵 시장 정원 도서관 박물관 역 음악 여름 겨울 아침
        저녁 강 다리 북 남 조용히 감사합니다 축하합니다 꿈 빛
        """
    ),
}
"""Language code -> words, in the case a dictionary gives them."""

UNSPACED: frozenset[str] = frozenset({"zh", "ja"})
"""Languages that set no space between words."""
