"""Which experiments stand beside each other: refused where their protocols differ, else told apart as rows.

The protocol, which is the task, the data and the fine-tuning, must be equal or be allowed to differ by name. What else
differs tells rows apart: a row is a strategy, in one of its variants, at one label fraction, over its seeds.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from premed.config.plugins import plugin
from premed.contenders import FRACTION, HEAD, SEEDS, Member, counted, listed
from premed.contracts import Part
from premed.errors import UserError

SOURCE = "pretrain.sources."  # with its number after it: a data set that a pre-training names
PROTOCOL = ("task.", "data.train", "data.val", "data.test", "finetune.")
Pairing = Literal["paired", "unpaired", "patients"]


@dataclass(frozen=True)
class Row:
    """A strategy, in one of its variants, at one label fraction: members that differ in seeds alone."""

    label: str
    fraction: float
    members: tuple[Member, ...]
    differs: dict[str, str]

    @property
    def fields(self) -> dict[str, str]:
        return self.members[0].fields

    @property
    def strategy(self) -> str:
        return self.fields["strategy"]

    @cached_property
    def units(self) -> dict[tuple[str, str], list[Member]]:
        """Members by independent seed: fine-tunings of one of several pre-trainings are no seeds of their own."""
        before, after = ({get(each) for each in self.members} for get in (_pretrain_seed, _seed))
        alone = len(before) == len(after) == len(self.members)
        units: dict[tuple[str, str], list[Member]] = defaultdict(list)
        for member in sorted(self.members, key=lambda member: (len(member.seed), member.seed)):
            by_pretraining = len(before) > 1 and not alone
            units[("pretrain", str(member.pretrain_seed)) if by_pretraining else ("finetune", member.seed)].append(
                member
            )
        return units

    @property
    def varied(self) -> str:
        names = {
            "pre-training": {_pretrain_seed(each) for each in self.members},
            "fine-tuning": set(map(_seed, self.members)),
        }
        several = [name for name, seeds in names.items() if len(seeds) > 1]
        return f"{' and '.join(several)} seed" if several else "nothing"

    def paired(self, other: "Row", least: int) -> tuple[Pairing, list[int], list[int]]:
        """How it is compared with another row, and on which of its units and of the other's.

        paired: on the seeds that both have, if they are at least so many; unpaired: on all seeds, if both have so
        many; patients: the seeds are too few to tell how another would come out.
        """
        ours, theirs = list(self.units), list(other.units)
        common = [seed for seed in ours if seed in theirs]
        both = [ours.index(seed) for seed in common], [theirs.index(seed) for seed in common]
        everything = list(range(len(ours))), list(range(len(theirs)))
        if len(common) >= least:
            return "paired", *both
        if min(len(ours), len(theirs)) >= least:
            return "unpaired", *everything
        return "patients", *(both if common else everything)


@dataclass(frozen=True)
class Block:
    """Rows with one head."""

    head: str
    rows: list[Row]


def _seed(member: Member) -> str:
    return member.seed


def _pretrain_seed(member: Member) -> str | None:
    return member.pretrain_seed


# ---- what may stand beside what


def lineup(members: list[Member], part: Part, allow: Sequence[str]) -> tuple[list[Block], list[str]]:
    """A task's members, newest first, in rows and blocks; UserError where their protocols differ and may not."""
    members = placeless(members, part)
    newest: dict[tuple, Member] = {}
    for member in members:
        newest.setdefault((member.variant, member.fields.get(FRACTION), member.seed, member.pretrain_seed), member)
    twice = len(members) - len(newest)
    said = [f"{counted(twice, 'run')} there twice with all fields the same: the newest counts"] if twice else []
    members = list(newest.values())
    refuse(members, PROTOCOL[:-1], part, allow)
    heads: dict[str, list[Member]] = defaultdict(list)
    for member in members:
        heads["" if allowed(HEAD, allow) else member.fields.get(HEAD, "")].append(member)
    blocks = []
    for head, some in sorted(heads.items(), key=lambda item: -len(item[1])):
        refuse(some, PROTOCOL[-1:], part, allow)
        blocks.append(Block(head or some[0].fields.get(HEAD, ""), rows_of(some)))
    for name in sorted(
        {name for member in members for name in member.fields if protocol(name) and allowed(name, allow)}
    ):
        if len(values := {member.fields.get(name, "not set") for member in members}) > 1:
            said.append(f"{name} differs and was allowed to: {listed(values)}")
    return blocks, said


def placeless(members: list[Member], part: Part) -> list[Member]:
    """The members without the fields that change no score: where a file lies; what test part a score on val has."""
    names = {name for member in members for name in member.fields if name.startswith("task.")}
    differing = {name for name in names if len({member.fields.get(name) for member in members}) > 1}
    places = {"data.test"} if part == "val" else set()
    if differing:
        with_name = members[0].fields.get("task.name", "")
        try:
            config = plugin("tasks", with_name).Config.model_fields
        except ValueError:  # of a task that is no longer there nothing is known
            return members
        places |= {
            name
            for name in differing
            if (field := config.get(name.split(".")[1])) and (field.json_schema_extra or {}) == {"digest": False}
        }
    return [
        replace(member, fields={name: value for name, value in member.fields.items() if name not in places})
        for member in members
    ]


def protocol(name: str) -> bool:
    """Whether members must agree on a field. What pre-training saw (`data.images`, `data.weights`) tells rows apart."""
    return name.startswith(PROTOCOL) and name not in (*SEEDS, FRACTION)


def allowed(name: str, allow: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in allow)


def refuse(members: list[Member], prefixes: tuple[str, ...], part: Part, allow: Sequence[str]) -> None:
    """One line for the first field in which members differ; what is scored can never be allowed to."""
    names = sorted({name for member in members for name in member.fields if name.startswith(prefixes)})
    differing = []
    for name in filter(protocol, names):
        values = Counter(member.fields.get(name, "not set") for member in members)
        if len(values) > 1 and (name == f"data.{part}" or not allowed(name, allow)):
            differing.append((name, values))
    if not differing:
        return
    name, values = differing[0]
    found = ", ".join(f"{value} ({counted(number, 'run')})" for value, number in values.most_common(4))
    mend = f"--where {name}={values.most_common(1)[0][0]}"
    mend += ", for other cases cannot be paired" if name == f"data.{part}" else f" or --allow {name}"
    more = f" ({listed([name for name, _ in differing[1:5]])} too)" if differing[1:] else ""
    raise UserError(f"{members[0].task}: runs differ in {name}: {found}; {mend}{more}")


def rows_of(members: list[Member]) -> list[Row]:
    """Members in rows; a row is called by its strategy and by what tells it from others of that strategy."""
    groups: dict[tuple, list[Member]] = defaultdict(list)
    for member in members:
        groups[float(member.fields.get(FRACTION, 1.0)), member.variant].append(member)
    rows = []
    for (fraction, _), some in groups.items():
        kin = [member for member in members if member.fields["strategy"] == some[0].fields["strategy"]]
        names = sorted({name for member in kin for name in member.fields if name not in (*SEEDS, FRACTION)})
        differs = {
            name: some[0].fields.get(name, "not set")
            for name in names
            if len({member.fields.get(name) for member in kin}) > 1
        }
        seen = sources(some[0].fields) if len({sources(member.fields) for member in kin}) > 1 else ""
        rows.append(Row(" ".join([some[0].fields["strategy"], *told(differs, seen)]), fraction, tuple(some), differs))
    return sorted(rows, key=lambda row: (row.fraction, row.label))


def told(differs: dict[str, str], seen: str = "") -> list[str]:
    """What tells a row from others, in short: another encoder by its name, the rest as field=value.

    seen: the data sets of its pre-training, where others had not the same.
    """
    swapped = [name for name in differs if name in ("encoder.name", HEAD)]
    covered = tuple(name.removesuffix("name") for name in swapped) + ((SOURCE, "data.images") if seen else ())
    rest = [name for name in differs if not name.startswith(covered or "?")]
    words = [differs[name] for name in swapped] + ([f"sources={seen}"] if seen else [])
    return words + [f"{name.rpartition('.')[2]}={differs[name]}" for name in rest]


def sources(fields: dict[str, str]) -> str:
    """The data sets that a pre-training names, in short: `X-ray+MRI`; `own` where it names none."""
    found: list[str] = []
    while f"{SOURCE}{len(found)}.task.name" in fields:
        names = [fields.get(f"{SOURCE}{len(found)}.{name}", "None") for name in ("group", "task.folder", "task.name")]
        found.append(next(name for name in names if name != "None"))
    return "+".join(found) or "own"
