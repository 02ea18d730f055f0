"""The plan's part on data: which site trains on what, and how a pool is dealt out."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from fedshield.errors import InvalidKey
from fedshield.site_names import holder_of_reserved_name

SITE_NAME = r"^[a-z0-9][a-z0-9-]{0,30}$"
MAX_SITES = 64
_ESCAPING = {"unicode-escape", "raw-unicode-escape", "punycode", "idna", "utf-7", "undefined"}
PositiveInt = Annotated[int, Field(ge=1, lt=2**31)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ColumnsPlan(Section):
    """Names of the columns that hold each part of an example, where the usual ones differ."""

    prompt: str | None = None
    input: str | None = None
    response: str | None = None
    messages: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ColumnsPlan:
        for key in ("prompt", "input", "response", "history"):
            value = getattr(self, key)
            if self.messages is not None and value is not None:
                raise InvalidKey(
                    key, f"{value!r}", "none beside messages, which hold the whole row"
                )
        return self


class SourcePlan(Section):
    """Where rows come from: `sample:NAME`, `hub:OWNER/NAME`, or a JSON, CSV or Parquet file.
    `separator` and `encoding` are of CSV and text files, also of `heldout_source`."""

    source: Annotated[str, Field(min_length=1)]
    split: str = "train"
    rows: PositiveInt | None = None
    heldout_source: str | None = None
    heldout_rows: PositiveInt | None = None
    columns: ColumnsPlan | None = None
    separator: str | None = None
    encoding: str | None = None

    @model_validator(mode="after")
    def _readable(self) -> SourcePlan:
        mark, name = self.separator, self.encoding
        if mark is not None and mark != "tab" and (len(mark) != 1 or mark in '"\r\n '):
            raise InvalidKey(
                "separator", f"{mark!r}", "the one character between columns, such as ';', or tab"
            )
        if name is not None and not _is_text_encoding(name):
            raise InvalidKey(
                "encoding", f"{name!r}", "an encoding of text: utf-8, cp1252, utf-16, ..."
            )
        return self


def _is_text_encoding(name: str) -> bool:
    """Whether Python knows it, and it spells letters as letters (no escapes, no base64)."""
    try:
        return codecs.lookup(name).name not in _ESCAPING and "aä".encode(name, "replace") != b""
    except (LookupError, ValueError):
        return False


SiteName = Annotated[str, Field(pattern=SITE_NAME)]


class DataPlan(Section):
    """Which site trains on what."""

    split: Literal["by-site", "iid", "dirichlet"] = "by-site"
    sites: dict[SiteName, SourcePlan] = Field(default_factory=dict)
    pool: tuple[SourcePlan, ...] = ()
    num_sites: Annotated[int, Field(ge=1, le=MAX_SITES)] | None = None
    dirichlet_alpha: Annotated[float, Field(gt=0)] = 0.5
    dirichlet_column: str | None = None
    heldout_rows: PositiveInt = 32
    on_bad_row: Literal["refuse", "skip"] = "refuse"
    min_examples: PositiveInt | None = None
    unused: Literal["note", "refuse"] = "note"

    @model_validator(mode="after")
    def _consistent(self) -> DataPlan:
        if self.split == "by-site":
            if not self.sites:
                raise InvalidKey(
                    "sites", "{}", "at least one site with a source when split is by-site"
                )
            if self.pool or self.num_sites is not None:
                key = "pool" if self.pool else "num_sites"
                raise InvalidKey(
                    key, "some", f"no {key} when split is by-site (give each site a source)"
                )
        else:
            if self.sites:
                raise InvalidKey(
                    "sites", "some", f"no sites when split is {self.split} (use pool, num_sites)"
                )
            if not self.pool:
                raise InvalidKey("pool", "()", f"at least one source when split is {self.split}")
            if self.num_sites is None:
                raise InvalidKey(
                    "num_sites", "None", f"a number of sites when split is {self.split}"
                )
            for index, source in enumerate(self.pool):
                for key in ("heldout_source", "heldout_rows"):
                    value = getattr(source, key)
                    if value is not None:
                        raise InvalidKey(
                            f"pool.{index}.{key}",
                            f"{value!r}",
                            "none in a pool: every site holds out data.heldout_rows of its share",
                        )
        if self.dirichlet_column is not None and self.split != "dirichlet":
            raise InvalidKey(
                "dirichlet_column", f"{self.dirichlet_column!r}", f"none when split is {self.split}"
            )
        for name in self.sites:
            if (holder := holder_of_reserved_name(name)) is not None:
                raise InvalidKey("sites", name, f"site names other than {name} (that is {holder})")
        if len(self.sites) > MAX_SITES:
            raise InvalidKey("sites", f"{len(self.sites)} sites", f"at most {MAX_SITES} sites")
        return self

    def site_names(self) -> tuple[str, ...]:
        if self.split == "by-site":
            return tuple(sorted(self.sites))
        width = len(str(self.num_sites))
        return tuple(f"site-{k + 1:0{width}d}" for k in range(self.num_sites or 0))


def without_later_keys(data: dict[str, Any]) -> dict[str, Any]:
    """The data part of a plan's canonical form, without the keys that came later where they are
    unset: hashes of earlier plans stay as they were.

    >>> without_later_keys({"rows": 3, "unused": "note", "sites": {}, "pool": []})
    {'rows': 3, 'sites': {}, 'pool': []}
    """
    later = (("unused", "note"), ("min_examples", None))
    kept = {key: value for key, value in data.items() if (key, value) not in later}
    sites = {name: _source_without(source) for name, source in data["sites"].items()}
    return {**kept, "sites": sites, "pool": [_source_without(source) for source in data["pool"]]}


def _source_without(source: dict[str, Any]) -> dict[str, Any]:
    later, of_columns = {"separator", "encoding"}, {"history", "tools"}
    kept = {key: value for key, value in source.items() if value is not None or key not in later}
    if kept["columns"] is not None:
        kept["columns"] = {
            key: value
            for key, value in kept["columns"].items()
            if value is not None or key not in of_columns
        }
    return kept
