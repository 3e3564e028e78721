"""How studies meet readers.

`display` is what chapters call (`show`, `scoreboard`), `pages` makes the website of it, `notebooks` the copies for Colab; `site`
knows where the book lives.
"""
