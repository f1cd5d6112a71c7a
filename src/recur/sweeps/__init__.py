"""Sweeps: many runs, each a fresh process that anyone could have typed.

What a sweep adds is slots (`slots`), places beyond this machine (`cluster`), order (`conductor`), memory of what is
done (`manifest`), search (`space`, `study`) and an answer (`answer`, `pictures`, `page`).
"""
