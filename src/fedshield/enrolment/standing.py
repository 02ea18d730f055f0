"""How far a roster is from use, and how many colluders it still tolerates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Standing:
    """How far a roster is from use. `unconfirmed`: signer -> the sites it did not confirm."""

    max_colluding: int
    unsigned: tuple[str, ...]
    unconfirmed: dict[str, tuple[str, ...]]

    @property
    def worst(self) -> int:
        """Unconfirmed keys from the viewpoint of the signer that confirmed fewest."""
        return max(map(len, self.unconfirmed.values()), default=0)

    @property
    def remaining(self) -> int:
        """Sites that may collude besides the unconfirmed ones."""
        return self.max_colluding - self.worst

    @property
    def ready(self) -> bool:
        return not self.unsigned and self.remaining >= 0

    def missing(self) -> tuple[str, ...]:
        found: list[str] = []
        if self.unsigned:
            found.append(
                f"no countersignature of {', '.join(self.unsigned)}: each runs fedshield roster "
                "sign ROSTER --key KEYFILE --confirm SITE"
            )
        for signer, others in self.unconfirmed.items():
            if len(others) > self.max_colluding:
                found.append(
                    f"{signer} did not confirm {', '.join(others)}, and {_keys(len(others))} "
                    f"that may be anyone's are more than c={self.max_colluding}: it compares the "
                    "fingerprint with them over a channel that the coordinator does not carry, "
                    "and signs again"
                )
        return tuple(found)

    def in_words(self) -> str:
        c, left = self.max_colluding, self.remaining
        if not self.ready:
            return "NOT READY: no run may use this roster yet"
        if self.worst == 0:
            start = "ready: every site confirmed every other"
        else:
            signer = max(self.unconfirmed, key=lambda name: len(self.unconfirmed[name]))
            start = (
                f"ready, with {_keys(self.worst)} unconfirmed at {signer} "
                f"({', '.join(self.unconfirmed[signer])}), counted as colluding"
            )
        more = "more " if self.worst else ""
        return (
            f"{start}: of c={c}, {left} {more}{'site' if left == 1 else 'sites'} may collude with "
            f"the coordinator; {left + 1} {more}with its help can open single updates"
        )


def _keys(count: int) -> str:
    return f"{count} site {'key' if count == 1 else 'keys'}"
