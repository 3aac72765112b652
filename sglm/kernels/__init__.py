"""Functions that PyTorch computes in many small launches: references, and Triton kernels of them.

The plain PyTorch references are what runs. A model that is built while the environment variable
`SGLM_TRITON` is 1 gets the kernels (`sglm.kernels.choice`). They are off by default because
nobody has measured them yet: they are tested under Triton's interpreter and compile for a GPU, and
whether they are faster there is unknown (`scripts.benchmarks.kernels` measures it).
"""
