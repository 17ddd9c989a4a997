"""What is run and not imported by users: the commands of ``python -m dynamic_dilation_unfold``, and the diagnosis of a
machine that a failing CUDA call asks for.

The package imports nothing from here until it is needed.
"""
