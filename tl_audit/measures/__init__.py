"""Numbers on arrays: intervals, tests, and the measures that checks are made of.

What belongs here: pure functions of numpy arrays in float64 that know no model, no domain, no policy and no torch.
A function that gives a number gives an `Estimate` (tl_audit.measures.estimate): value, n, clusters, and intervals at many
levels, or None with the reason why it is undefined. Nothing here judges. Randomness comes from `sampling.generator`.
"""
