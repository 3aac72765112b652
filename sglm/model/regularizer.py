"""Penalties on what the last layer puts out: small (AR) and slow (TAR).

Merity, McCann & Socher 2017, "Revisiting Activation Regularization for Language RNNs", sec. 3: AR
is α·L2(m ⊙ h_t) of the outputs after dropout, TAR is β·L2(h_t − h_{t+1}) of those before it, both
of the last layer only. As in their AWD-LSTM code, L2 is the mean of squares over steps, lanes and
features, which makes α and β independent of window and batch.

The arithmetic lies beside the kernel that does it at once with dropout.
"""

from sglm.kernels.dropout import activation_penalty as activation_penalty
