"""Key-additive encryption of long integer vectors under ring-LWE, with one-time keys.

A vector is encrypted under a fresh short key; ciphertexts add, and the sum opens under the sum
of the keys. Lineage: Stevens et al., USENIX Security 2022 (arXiv 2112.06872); ACORN, USENIX
Security 2023; Willow, CRYPTO 2025 (ePrint 2024/936).

This package is the arithmetic only: who may learn the sum of the keys, and when, is the
protocol's part. Reading order: params.py and layout.py (public, computed before a run);
sampling.py and tag.py; scheme.py, what a site does; adder.py, what the coordinator does.
reference.py and kernels.py (with transform.py and primitives.py) hold the same arithmetic twice,
readable in numpy and fast in numba.
"""
