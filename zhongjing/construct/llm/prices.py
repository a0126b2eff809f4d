"""What tokens cost at hosted models whose prices are published, for plans and budgets where none is given.

US dollars for a million tokens of text, without discounts for caches or batches, as OpenAI's page on prices
(https://platform.openai.com/docs/pricing) had them on the date below. Prices change: give your own where it
matters. A model at another address than its maker's has no price here.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from zhongjing.construct.llm.limits import Prices
from zhongjing.construct.llm.server import Server

AS_OF: Final = "May 2026"
_HOST = "api.openai.com"
_PRICES: Final = {
    "gpt-4.1": Prices(2.0, 8.0),
    "gpt-4.1-mini": Prices(0.4, 1.6),
    "gpt-4o": Prices(2.5, 10.0),
    "gpt-4o-mini": Prices(0.15, 0.6),
    "gpt-3.5-turbo": Prices(0.5, 1.5),
}


def published(server: Server) -> Prices | None:
    """The published prices of a model at its maker's address; None: they are not known."""
    return _PRICES.get(server.model) if urlsplit(server.base_url).hostname == _HOST else None
