"""NVIDIA FLARE 2.9.0 (Collab API) between coordinator and sites: thin delegation, no protocol.

FLARE carries bytes, over mutual TLS where it is provisioned; what the bytes say is signed, checked
and encrypted by `fedshield.protocol`, which knows nothing of it.
"""
