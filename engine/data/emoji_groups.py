"""Which emoji there are, their classes, and which of them are alike.

Emoji of one character each, as Unicode 14 has them, which is what Python 3.11 knows. Left out are sequences (skin
tones, flags made of letters, couples), and the five flags that are characters. Classes are Unicode's groups of emoji.

*Source*: emoji-test.txt of Unicode 15.0, © Unicode, Inc., for characters and groups; names come from the Unicode
Character Database by way of `unicodedata`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

GROUPS = {
    "smileys": "☠☹☺❣❤👹-👻👽-💀💋💌💓-💟💢💤-💦💨💩💫-💭💯🕳🖤🗨🗯😀-🙄🙈-🙊🤍🤎🤐-🤗🤠-🤥🤧-🤯🥰-🥶🥸-🥺🧐🧡🫠-🫥",
    "people": (
        "☝⛷⛹✊-✍🎅🏂-🏄🏇🏊-🏌👀-👐👣-👸👼💁-💃💅-💇💏💑💪🕴🕵🕺🖐🖕🖖🗣🙅-🙇🙋-🙏🚣🚴-🚶🛀🛌🤌🤏🤘-🤟🤦🤰-🤺🤼-🤾"
        "🥷🦴-🦹🦻🦾🦿🧌-🧏🧑-🧠🫀-🫅🫦🫰-🫶"
    ),
    "nature": "☘🌱-🌵🌷-🌼🌾-🍄🏵🐀-🐿💐💮🕊🕷🕸🥀🦁-🦏🦒-🦝🦟-🦩🦫-🦮🪰-🪴🪶-🪺",
    "food": "☕🌭-🌰🌶🌽🍅-🍿🎂🏺🔪🥂-🥄🥐-🥯🦀🦐🦑🦞🦪🧀-🧋🫐-🫙",
    "travel": (
        "⌚⌛⏰-⏳☀-☄☔♨⚓⚡⛄⛅⛈⛩⛪⛰-⛲⛴⛵⛺⛽✈❄⭐🌀-🌡🌤-🌬🎠-🎢🎪🏍🏎🏔-🏦🏨-🏭🏯🏰💈💒💧💺🔥🕋-🕍🕐-🕧🕰🗺-🗾"
        "🚀-🚢🚤-🚨🚲🛎🛑🛕🛖🛝-🛟🛢-🛥🛩🛫🛬🛰🛳-🛶🛸-🛼🦼🦽🧭🧱🧳🪂🪐🪨🪵"
    ),
    "activities": (
        "♟♠♣♥♦⚽⚾⛳⛸✨🀄🃏🎀🎁🎃🎄🎆-🎋🎍-🎑🎖🎗🎟🎣🎨🎫🎭-🎴🎽-🏀🏅🏆🏈🏉🏏-🏓🏸🔫🔮🕹🖼🛷🤿🥅🥇-🥏🧧-🧩🧵🧶🧸"
        "🪀🪁🪄-🪆🪡🪢🪩"
    ),
    "objects": (
        "⌨☎⚒⚔⚖⚗⚙⚰⚱⛏⛑⛓✂✉✏✒🎒🎓🎙-🎛🎞🎤🎥🎧🎩🎬🎵-🎼🏮🏷🏹👑-👢💄💉💊💍💎💡💣💰💳-💹💻-📚📜-📲📷-📽📿🔇-🔗🔦-🔩🔬🔭"
        "🕯🕶🖇🖊-🖍🖥🖨🖱🖲🗂-🗄🗑-🗓🗜-🗞🗡🗳🗿🚪🚬🚽🚿🛁🛋🛍🛏🛒🛗🛠🛡🥁🥻-🥿🦯🦺🧢-🧦🧪-🧬🧮-🧰🧲🧴🧷🧹-🧿🩰-🩴🩸-🩼🪃🪑-🪠"
        "🪣-🪧🪪-🪬🫧"
    ),
    "symbols": (
        "©®‼⁉™ℹ↔-↙↩↪⏏⏩-⏯⏸-⏺Ⓜ▪▫▶◀◻-◾☑☢☣☦☪☮☯☸♀♂♈-♓♻♾♿⚕⚛⚜⚠⚧⚪⚫⛎⛔✅✔✖✝✡✳✴❇❌❎❓-❕❗➕-➗➡➰➿⤴⤵⬅-⬇⬛⬜"
        "⭕〰〽㊗㊙🅰🅱🅾🅿🆎🆑-🆚🈁🈂🈚🈯🈲-🈺🉐🉑🎦🏧💠💱💲📛📳-📶🔀-🔆🔘-🔤🔯-🔽🕉🕎🚫🚭-🚱🚳🚷-🚼🚾🛂-🛅🛐"
        "🟠-🟫🟰"
    ),
}
"""Class to its emoji, in the order of their code points; a dash stands for all in between."""

_SERIES = (
    "♈-♓⛎☪✡☸☯☮✝☦🔯🕉🛐🕎🟪",
    "🅰🅱🅾🅿🆎🆑-🆚🈁🈂🈚🈯🈲-🈺㊗㊙🉐🉑",
    "🕐🕜",
    "🌕🟡🌙",
    "👦-👩🧑🧒👱👴👵🧓👶🧔🙍🙎🤴👸🫅",
    "👫-👭",
    "🚫🚭🚯🚱🚳🚷📵🔞⛔",
    "🔒🔓🔏🔐",
    "🔇-🔊",
    "🌍-🌏",
    "🙈-🙊",
    "💴-💷",
    "🔙-🔝",
    "🔃🔄",
    "🔁🔂",
    "🔅🔆",
    "🔔🔕",
    "🔠-🔤",
    "🎵🎶",
    "🥇-🥉🏅",
    "🚹🚺🚻",
    "⏸-⏺",
    "🌄🌅",
    "🌆🌇",
    "📅📆",
    "📔📕",
    "📤📥",
    "📨📩✉📧",
    "🍺🍻",
    "🚗🚙",
    "🚘🚖🚔🚍",
    "🏚🏠🏡",
    "🛂-🛅",
    "☁🌧🌨🌩",
    "🌤⛅🌥🌦",
    "☂☔",
    "☃⛄",
    "⌛⏳",
    "✳❇",
    "😀😃😄😁😆😅",
    "😐😑",
    "😗😙😚",
    "😛😜😝",
    "☹🙁",
    "☺😊",
)
"""Emoji whose pictures are nearly the same though their names are not."""

_VARYING = frozenset(
    " ".join(
        (
            "one two three four five six seven eight nine ten eleven twelve thirty first second third last",
            "black white red blue green yellow orange purple brown grey pink light dark",
            "left right up down leftwards rightwards upwards downwards north east south west upper lower above",
            "large small medium heavy big double triple full half quarter new crescent waxing waning gibbous",
            "man woman boy girl male female mens womens mother father older person people adult",
            "open closed raised lowered flag back symbol sign mark button with and of in on the face a",
        )
    ).split()
)
"""Words of names that tell emoji of one kind apart, such as blue and green hearts, or that say nothing."""


def spelt(runs: str) -> Iterator[str]:
    """Yield the characters of a text in which a dash stands for all in between.

    >>> "".join(spelt("a-dx"))
    'abcdx'
    """
    for first, last in re.findall(r"(.)(?:-(.))?", runs):
        yield from map(chr, range(ord(first), ord(last or first) + 1))


def words(emoji: str) -> list[str]:
    """Return the words of an emoji's Unicode name.

    >>> words("🕐")
    ['clock', 'face', 'one', 'oclock']
    """
    return re.findall(r"[a-z0-9]+", unicodedata.name(emoji).lower())


def families(emoji: Sequence[str]) -> list[int]:
    """Return a number for each emoji, the same for those that are alike, which belong on one side of a split.

    Alike are emoji whose names are the same but for colour, size, number, direction, sex or phase (hearts, clock faces,
    arrows, moons, squares), and those of a series whose pictures are nearly the same. The number is the place of a
    family's first member.
    """
    first: dict[object, int] = {}
    family = list(range(len(emoji)))
    series = [frozenset(spelt(runs)) for runs in _SERIES]
    for place, one in enumerate(emoji):
        stem = frozenset(words(one)) - _VARYING
        for key in ([stem] if stem else []) + [s for s in series if one in s]:
            _join(family, first.setdefault(key, place), place)
    return [_root(family, place) for place in range(len(emoji))]


def _root(family: list[int], place: int) -> int:
    while family[place] != place:
        place = family[place]
    return place


def _join(family: list[int], a: int, b: int) -> None:
    low, high = sorted((_root(family, a), _root(family, b)))
    family[high] = low
