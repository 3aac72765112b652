"""Do synthetic gradients lead to the same function by other layers, and are they a loss's gradient?

Two findings of Czarnecki et al. 2017 (*Understanding Synthetic Gradients and Decoupled Neural
Interfaces*), asked of language models: `analysis.py` carries them out, `finding.py` says what they
come to. `sample.py` chooses the tokens, `layers.py` reads them, `similarity.py` and `probes.py`
compare what was read; `fields.py` makes a function of states of a run's synthesizer, and
`implied_loss.py` measures whether it is a gradient, and of what.
"""
