"""How fast and how large models are on this machine, beside baselines of the same run.

``run`` measures, ``figures`` makes ratios of it, ``plot`` draws it. Everything that is compared is
measured by turns in one process; memory in a fresh one each.
"""
