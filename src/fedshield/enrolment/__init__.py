"""Enrolment: how organisations agree on who takes part, with which key and under which rules.

Each party makes its keys (`keygen`) and hands out its card; the coordinator puts the cards into
a roster; every site reviews, compares the fingerprint and countersigns. No key leaves its site.
"""

from fedshield.enrolment.cards import Card, KeyFile, keygen
from fedshield.enrolment.demo import demonstration, write_demonstration
from fedshield.enrolment.files import RosterError
from fedshield.enrolment.policy import Policy, PolicyError, PrivacyFloor
from fedshield.enrolment.signed_roster import Countersignature, SignedRoster
from fedshield.enrolment.standing import Standing
from fedshield.enrolment.terms import Allowed, Asked

__all__ = [
    "Allowed",
    "Asked",
    "Card",
    "Countersignature",
    "KeyFile",
    "Policy",
    "PolicyError",
    "PrivacyFloor",
    "RosterError",
    "SignedRoster",
    "Standing",
    "demonstration",
    "keygen",
    "write_demonstration",
]
