"""Do synthetic gradients lead to the same function with other layers; are they a loss's gradient?

The analysis repeats two measurements of Czarnecki et al. 2017 (*Understanding Synthetic Gradients
and Decoupled Neural Interfaces*) on language models. `analysis.py` carries it out; `finding.py` has
its table and conclusions. `sample.py` chooses the tokens, `layers.py` reads them, and
`similarity.py` and `probes.py` compare the layers. `fields.py` turns a run's synthesizer into a
function of states; `implied_loss.py` measures whether this is a gradient, and of which loss.
"""
