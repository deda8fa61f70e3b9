"""Strategies side by side: runs are selected, grouped into arms, scored, compared, and shown as a table or a page.

Entry points: `compare.compare` (a `result.ComparisonResult`), `terminal`, `page`.
"""
