"""ML-KEM-768 in plain Python, from FIPS 203 (algorithm numbers in the docstrings). For tests only:
slow, not constant-time. Unlike the library it encapsulates with a given message, so that known
answers can be made, and a generator that repeats can be played."""

from __future__ import annotations

import hashlib

Q, N, K = 3329, 256, 3
ETA = 2
DU, DV = 10, 4
EK_BYTES = 384 * K + 32

Poly = list[int]


def _bit_reversed(value: int) -> int:
    return int(f"{value:07b}"[::-1], 2)


ZETAS = [pow(17, _bit_reversed(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _bit_reversed(i) + 1, Q) for i in range(128)]


def byte_encode(values: Poly, bits: int) -> bytes:
    """Algorithm 5: the values, `bits` each, least significant bit first."""
    packed = sum(value << (bits * place) for place, value in enumerate(values))
    return packed.to_bytes(len(values) * bits // 8, "little")


def byte_decode(data: bytes, bits: int) -> Poly:
    """Algorithm 6; 12 bits are taken mod q."""
    packed = int.from_bytes(data, "little")
    modulus = Q if bits == 12 else 1 << bits
    count = len(data) * 8 // bits
    return [(packed >> (bits * place) & ((1 << bits) - 1)) % modulus for place in range(count)]


def compress(values: Poly, bits: int) -> Poly:
    """Section 4.2.1: round(2^d x / q), halves up."""
    return [((value << (bits + 1)) + Q) // (2 * Q) % (1 << bits) for value in values]


def decompress(values: Poly, bits: int) -> Poly:
    """Section 4.2.1: round(q y / 2^d), halves up."""
    return [(Q * value + (1 << (bits - 1))) >> bits for value in values]


def sample_ntt(seed: bytes, column: int, row: int) -> Poly:
    """Algorithm 7: rejection from SHAKE128."""
    stream = hashlib.shake_128(seed + bytes([column, row])).digest(3 * 1024)
    found: Poly = []
    for at in range(0, len(stream), 3):
        a, b, c = stream[at : at + 3]
        found += [value for value in (a + 256 * (b % 16), b // 16 + 16 * c) if value < Q]
        if len(found) >= N:
            return found[:N]
    raise AssertionError("unlucky seed: lengthen the stream")


def sample_binomial(seed: bytes, nonce: int) -> Poly:
    """Algorithm 8 of PRF_eta, SHAKE256."""
    stream = hashlib.shake_256(seed + bytes([nonce])).digest(64 * ETA)
    bits = int.from_bytes(stream, "little")
    pieces = [bits >> (2 * ETA * place) & 15 for place in range(N)]
    return [((p & 3).bit_count() - (p >> 2).bit_count()) % Q for p in pieces]


def ntt(values: Poly) -> Poly:
    """Algorithm 9."""
    f, i, length = [*values], 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            for j in range(start, start + length):
                t = ZETAS[i] * f[j + length] % Q
                f[j], f[j + length] = (f[j] + t) % Q, (f[j] - t) % Q
            i += 1
        length //= 2
    return f


def inverse_ntt(values: Poly) -> Poly:
    """Algorithm 10."""
    f, i, length = [*values], 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            for j in range(start, start + length):
                t = f[j]
                f[j] = (t + f[j + length]) % Q
                f[j + length] = ZETAS[i] * (f[j + length] - t) % Q
            i -= 1
        length *= 2
    return [value * 3303 % Q for value in f]


def multiply(f: Poly, g: Poly) -> Poly:
    """Algorithms 11 and 12, in the transformed domain."""
    h: Poly = []
    for i in range(128):
        a0, a1, b0, b1 = f[2 * i], f[2 * i + 1], g[2 * i], g[2 * i + 1]
        h += [(a0 * b0 + a1 * b1 * GAMMAS[i]) % Q, (a0 * b1 + a1 * b0) % Q]
    return h


def add(*polys: Poly) -> Poly:
    return [sum(row) % Q for row in zip(*polys, strict=True)]


def dot(left: list[Poly], right: list[Poly]) -> Poly:
    return add(*(multiply(f, g) for f, g in zip(left, right, strict=True)))


def matrix(rho: bytes) -> list[list[Poly]]:
    return [[sample_ntt(rho, j, i) for j in range(K)] for i in range(K)]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def keys(d: bytes, z: bytes) -> tuple[bytes, bytes]:
    """Algorithms 13 and 16: encapsulation key (1184 bytes), decapsulation key (2400 bytes)."""
    seeds = hashlib.sha3_512(d + bytes([K])).digest()
    rho, sigma = seeds[:32], seeds[32:]
    a = matrix(rho)
    s = [ntt(sample_binomial(sigma, n)) for n in range(K)]
    e = [ntt(sample_binomial(sigma, K + n)) for n in range(K)]
    t = [add(dot(row, s), noise) for row, noise in zip(a, e, strict=True)]
    ek = b"".join(byte_encode(poly, 12) for poly in t) + rho
    dk = b"".join(byte_encode(poly, 12) for poly in s)
    return ek, dk + ek + hashlib.sha3_256(ek).digest() + z


def encrypt(ek: bytes, message: bytes, coins: bytes) -> bytes:
    """Algorithm 14."""
    t = [byte_decode(piece, 12) for piece in pieces(ek[: 384 * K], 384)]
    a = matrix(ek[384 * K :])
    y = [ntt(sample_binomial(coins, n)) for n in range(K)]
    e1 = [sample_binomial(coins, K + n) for n in range(K)]
    e2 = sample_binomial(coins, 2 * K)
    columns = [[a[i][j] for i in range(K)] for j in range(K)]
    u = [add(inverse_ntt(dot(columns[j], y)), e1[j]) for j in range(K)]
    mu = decompress(byte_decode(message, 1), 1)
    v = add(inverse_ntt(dot(t, y)), e2, mu)
    first = b"".join(byte_encode(compress(poly, DU), DU) for poly in u)
    return first + byte_encode(compress(v, DV), DV)


def encapsulate(ek: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Algorithm 17: shared secret (32 bytes), ciphertext (1088 bytes). `message`: 32 bytes, random
    in earnest."""
    seeds = hashlib.sha3_512(message + hashlib.sha3_256(ek).digest()).digest()
    return seeds[:32], encrypt(ek, message, seeds[32:])


def decapsulate(dk: bytes, ciphertext: bytes) -> bytes:
    """Algorithms 15 and 18: the shared secret, or another one for a changed ciphertext."""
    s = [byte_decode(piece, 12) for piece in pieces(dk[: 384 * K], 384)]
    ek, digest, z = dk[384 * K : -64], dk[-64:-32], dk[-32:]
    width = 32 * DU
    u = [decompress(byte_decode(piece, DU), DU) for piece in pieces(ciphertext[: K * width], width)]
    v = decompress(byte_decode(ciphertext[K * width :], DV), DV)
    inner = inverse_ntt(dot(s, [ntt(poly) for poly in u]))
    message = byte_encode(compress([(x - y) % Q for x, y in zip(v, inner, strict=True)], 1), 1)
    seeds = hashlib.sha3_512(message + digest).digest()
    if encrypt(ek, message, seeds[32:]) == ciphertext:
        return seeds[:32]
    return hashlib.shake_256(z + ciphertext).digest(32)
