"""What people read: tables on the terminal (`console`), charts, HTML pages (`html`, `templates/`), statistics.

Entry points: `comparison.compare.compare` and `comparison.page`, `sweep.terminal` and `sweep.page`, `data_check.page`.
"""
