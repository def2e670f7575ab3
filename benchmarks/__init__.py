"""Side-by-side timings as ratios in one process. Never run as tests: `make bench`, or `python -m benchmarks NAME ...`.

mmd          a permutation test of MMD on one kernel matrix against a loop over permutations
grad_cam     Grad-CAM against one forward pass
audit        the hymenoptera audit, by part, against the bare model evaluations (needs ../shared/data)
evidence     a million table rows through evidence: seconds and peak memory
"""
