"""Teachers: diffusion models that predict how an image should change to fit the prompt.

The package imports none of its modules: those that load networks import large libraries, for seconds.
"""
