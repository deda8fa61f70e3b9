"""How many pre-trainings, seeds, patients and labels a comparison takes, and what it can show with those it has.

Entry points: `plan.from_store`, `plan.from_guesses`; `terminal.show`; `picture.write`.
"""
