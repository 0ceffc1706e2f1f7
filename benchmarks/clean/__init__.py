"""The clean control set: stock architectures that are known to train, and what is said of them.

An alarm here is either a false one, which is a bug of the analysis, or a real defect, which
then has a witness: weights and inputs within the stated ranges that make the model's own code
fail there.
"""
