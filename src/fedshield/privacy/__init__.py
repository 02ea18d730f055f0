"""Differential privacy: exact noise, two mechanisms, and the accountant of both.

    discrete_gaussian   the sampler: integers, at a stated distance from the true distribution
    site_level          a site's whole update is protected: noise in the encrypted sum
    example_level       a single row is protected: DP-SGD on the adapter (torch)
    accounting          epsilon from what was released
    terms               what a plan promises, and what of it is spent

docs/privacy.md says what is protected, from whom, and why the combinations that are refused are.
"""
