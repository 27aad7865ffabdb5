"""Operations under every loss: row statistics, their engines, and the layers below.

No module in here knows a loss. Imports go one way: row_stats, engines, pairs, then terms,
distributed and bindings.
"""
