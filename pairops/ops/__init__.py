"""Everything under a loss: row statistics, their engines, and what both stand on.

Nothing in here knows a loss. Imports go one way: row_stats, engines, pairs, then terms, distributed
and bindings.
"""
