"""The course's claims as experiments.

    claim.py         a claim, read from `conf/claims/NAME.yaml` and checked
    checks.py        what its file may say
    verdict.py       the rules: effects with a 95 % interval over seeds, and what follows from them
    experiment.py    from a claim to its observations: a sweep through the launcher, or a measurement a seed
    probes.py        what is measured on a finished run
    formulas.py      the quiz and the shapes
    costs.py         time, parameters, and nets that explode or read ahead
    nets.py          small nets that a claim builds itself: growth of gradients, inputs of characters, luck
    charts.py        line and dot charts as SVG
    page.py          the page, from `templates/claims.html`
    record.py        the JSON record and the table of the README
    blocks.py        each code block of the guides and the command that does the same

To add a claim: one file in `conf/claims`. What it compares are overrides of an ordinary run, or a function in one of
the modules above that takes `seed` and its arguments and gives rows; `tests/course` composes and tries every file.
"""
