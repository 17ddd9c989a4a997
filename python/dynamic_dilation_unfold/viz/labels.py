"""The words in pictures, and fonts that have their letters."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Literal

Language = Literal["en", "zh"]

_LABELS: dict[str, dict[str, str]] = {
    "en": {
        "dilation": "dilation (1 = neighbouring pixels)",
        "taps": "taps at {name}: dilation {rate:.2f}",
        "taps of one": "taps of dilation {rate:.2f}",
    },
    "zh": {
        "dilation": "扩张率（1 = 相邻像素）",
        "taps": "{name} 处的采样点：扩张率 {rate:.2f}",
        "taps of one": "扩张率为 {rate:.2f} 的采样点",
    },
}
# As matplotlib names them, most wanted first. Of a collection it may know the Japanese member alone, which has the
# Chinese characters too.
_CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Noto Sans CJK JP",
    "Arial Unicode MS",
)
_CHINESE_FILES = ("notosanscjk-regular", "notosanssc", "sourcehansans", "pingfang", "hiragino", "msyh", "simhei", "wqy")


def label(name: str, language: Language) -> str:
    """A text of this module, perhaps with fields to fill in."""
    return _LABELS[checked(language)][name]


def checked(language: Language) -> Language:
    """The language in which a picture can be labelled here; ValueError if there is no such."""
    if language not in _LABELS:
        raise ValueError(f"language must be one of {', '.join(map(repr, _LABELS))}, got {language!r}")
    if language == "zh" and chinese_font() is None:
        warnings.warn(
            "no font with Chinese characters was found, so the labels are in English; install Noto Sans CJK SC",
            stacklevel=3,
        )
        return "en"
    return language


@functools.cache
def chinese_font() -> str | None:
    from matplotlib import font_manager

    for look_again in (False, True):
        if look_again:  # matplotlib's list is kept in a file, and fonts may have been installed since
            for path in font_manager.findSystemFonts():
                if Path(path).name.lower().startswith(_CHINESE_FILES):
                    font_manager.fontManager.addfont(path)
        there = {entry.name for entry in font_manager.fontManager.ttflist}
        found = next((name for name in _CHINESE_FONTS if name in there), None)
        if found:
            return found
    return None


def font_families(language: Language) -> list[str]:
    """For a text's ``fontfamily``: matplotlib takes each letter from the first that has it."""
    from matplotlib import rcParams

    found = chinese_font() if language == "zh" else None
    return [*([found] if found else []), *rcParams["font.family"]]
