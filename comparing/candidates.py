"""Who takes part in a comparison, and what it inherits from the first search among them."""

import os
import re
from typing import Any, NamedTuple

import genotypes as gt
from console.parser import shown
from data_sets import named
from models.ops import OPS, check_primitives
from records.comparison import BASELINE, FOUND, GIVEN, PUBLISHED, RANDOM

SPACE = ("n_nodes", "k", "primitives")


class Candidate(NamedTuple):
    """One that takes part. `genotype` is None for a baseline, `flags` those of its search, `fault`
    says why it cannot be built."""

    name: str
    kind: str
    genotype: Any = None
    flags: Any = None
    fault: str = ""

    @property
    def text(self):
        """Its genotype, as text; "" for a baseline."""
        return "" if self.genotype is None else gt.to_str(self.genotype)


def inherit(cfg):
    """Let `cfg`, a config.CompareConfig, inherit from the first search among its candidates: the
    data and the stem, and the space of random cells. Returns what was inherited, in words."""
    source, found = next(
        ((name, data) for name in cfg.candidates if "flags" in (data := _metadata(name))),
        (None, {}),
    )
    if source is None:
        return ""
    flags = found["flags"]
    space = {name: found[name] for name in SPACE if name in found}
    network, images = cfg.marked(flags, inherit="network"), cfg.marked(flags, inherit="images")
    cfg.require_sayable({**network, **images, **space}, source)
    cfg.inherit({**network, **images, **space})
    if cfg.is_other_data(images):
        images = {}
        cfg.inherit({**network, **space})
    taken = {**images, **network, **space}
    words = [
        f"{name} {_text(value)}" for name, value in taken.items() if value != cfg.default(name)
    ]
    return f"inherited from {os.path.normpath(source)}: {', '.join(words) or 'the defaults'}"


def _metadata(name):
    """What a search left beside its genotype; {} for what is no search's."""
    if name in gt.PUBLISHED or name.startswith(("Genotype", "random:")):
        return {}
    found = gt.metadata(name)
    return found if isinstance(found.get("flags"), dict) else {}


def _text(value):
    return ",".join(map(str, value)) if isinstance(value, list) else value


def collect(cfg):
    """All `Candidate`s, two or more. Raises ValueError for what is none, or stands there twice, and
    for the cell of a search on other data."""
    names = [*cfg.candidates, *(f"random:{cfg.seed + i}" for i in range(cfg.random))]
    found = [_candidate(name, cfg) for name in names]
    found += [Candidate(name, BASELINE) for name in cfg.baseline]
    seen = set()
    for candidate in found:
        if candidate.name in seen:
            raise ValueError(f"{candidate.name} takes part twice; name it once")
        seen.add(candidate.name)
    _require_same_data(cfg, [c for c in found if c.flags])
    if "primitives" in cfg.said:
        check_primitives(cfg.primitives)
    if len(found) < 2:
        raise ValueError(
            f"only {found[0].name} takes part; name another cell, or take random ones with "
            f"--random 12"
        )
    sound = [c for c in found if not c.fault]
    if len(sound) < 2 or all(c.kind == BASELINE for c in sound):
        names_of = {}
        for c in found:
            names_of.setdefault(c.fault, []).append(c.name)
        faults = "; ".join(f"{', '.join(of)} ({why})" for why, of in names_of.items() if why)
        raise ValueError(f"nothing is left to compare without {faults}")
    return found


def of_other_spaces(cfg, found):
    """A sentence where cells that a search found are compared with random ones of another space, in
    a list; empty where none are."""
    others = {}
    for candidate in found:
        if candidate.kind == FOUND:
            own = _metadata(candidate.name)
            there = [name for name in SPACE if name in own]
            differ = [name for name in there if _space(own[name]) != _space(getattr(cfg, name))]
            if differ:
                others[candidate.name] = " ".join(f"--{name} {_text(own[name])}" for name in differ)
    if not others or not any(candidate.kind == RANDOM for candidate in found):
        return []
    of_space = ", ".join(f"{name} ({space})" for name, space in others.items())
    return [
        f"searched in another space than the random cells are drawn from: {of_space}; what is said "
        f"of found and random cells compares the spaces, too"
    ]


def _space(value):
    """A value of SPACE as random cells see it: the ops in no order, and without "none"."""
    return set(value) - {"none"} if isinstance(value, list) else value


def _candidate(name, cfg):
    if match := re.fullmatch(r"random:([0-9]{1,10})", name):
        try:
            genotype = gt.random_genotype(int(match[1]), cfg.primitives, cfg.n_nodes, cfg.k)
        except IndexError:
            raise ValueError("--primitives holds no op besides none for random cells") from None
        return _known(Candidate(name, RANDOM, genotype))
    if name.startswith("random"):
        raise ValueError(f"{shown(name)}: a random cell is random:SEED, such as random:1")
    genotype, data = gt.load(name), _metadata(name)
    if name.startswith("Genotype"):
        texts = [other for other in cfg.candidates if other.startswith("Genotype")]
        return _known(Candidate(f"Genotype {texts.index(name) + 1}", GIVEN, genotype))
    if name in gt.PUBLISHED:
        return _known(Candidate(name, PUBLISHED, genotype))
    kind = FOUND if data else GIVEN
    if data.get("kind") in (PUBLISHED, GIVEN, RANDOM):  # what a comparison has chosen
        kind = data["kind"]
    tidy = os.path.normpath(name)  # a shell puts a slash behind a folder
    name = tidy if os.path.dirname(tidy) else name  # a bare name may be that of a published cell
    return _known(Candidate(name, kind, genotype, data.get("flags")))


def _known(candidate):
    """The candidate, with a fault where one of its ops is not in OPS."""
    try:
        gt.require_known(candidate.genotype, OPS)
    except ValueError as error:
        return candidate._replace(fault=str(error))
    return candidate


def _require_same_data(cfg, searches):
    """All cells that were searched must be of the same data, unless the command line names it."""
    if "dataset" in cfg.said:
        return
    asked = [name for name in ("dataset", "in_channels", "input_size") if name not in cfg.said]
    for candidate in searches:
        own = {**cfg.flags(), **candidate.flags}
        for name in asked:
            if own[name] != getattr(cfg, name):
                raise _other_data(candidate.name, f"--{name} {_text(own[name])}", searches[0].name)
        same = os.path.abspath(own["data_path"]) == os.path.abspath(cfg.data_path)
        if cfg.dataset in named.FOLDERS and not same and "data_path" not in cfg.said:
            raise _other_data(candidate.name, own["data_path"], searches[0].name)


def _other_data(name, what, first):
    return ValueError(
        f"{name} was searched on other data than {first} ({what}); leave one of them out, or say "
        f"with --dataset what all are compared on"
    )
