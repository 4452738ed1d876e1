from __future__ import annotations

import pytest

from exporter.esms.answers import read_price


@pytest.mark.parametrize(
    ("text", "price"),
    [
        *(("350.5000", 350.5), ("0.0000", 0.0), (" 12 ", 12.0), ("007", 7.0)),
        *(("1000000000", 1e9), ("1000000000.1", None), ("9" * 20, None), ("9" * 400, None)),
        *((text, None) for text in ("", " ", "x", "-1", "+1", "1_0", "1e3", "1,5", ".5", "5.")),
        *((text, None) for text in ("nan", "inf", "1 0", "0x1", "\u0661", "1\n2")),
    ],
)
def test_prices_are_plain_decimals(text: str, price: float | None) -> None:
    assert read_price(text) == price
