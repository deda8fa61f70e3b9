"""The result of a sweep: analysed, summarised in words, and shown as a table or a page.

Entry points: `result.SweepResult`, `terminal`, `page`.
"""
