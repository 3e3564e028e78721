"""How studies meet readers: `show` and `scoreboard` for notebooks, and the Sphinx side that turns them into pages."""

from normlib.book.display import claims_table, scoreboard, show

__all__ = ["claims_table", "scoreboard", "show"]
