"""Parses YAML that anybody may have written: of bounded depth, size and numbers, and no field twice.

PyYAML's own SafeLoader runs no code, and takes minutes and all memory for a few lines whose aliases name each other.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

MOST_DEPTH = 50  # of lists and fields in each other; premed's own YAMLs have 6
MOST_ALIASED = 100_000  # values that aliases (*name) repeat, all together
MOST_SIGNS, MOST_NUMBER = 100, 2**64  # of a whole number: random keys, the largest that premed has, are 64 bits


OTHER_BASE = re.compile(r"[-+]?0[0-7_]+|.*:.*")
"""Whole numbers that YAML 1.1 reads as nobody means them: 010 is 8, and 1:30 is 90."""
OTHER_MEANING = "write the number without a leading 0 or a colon, or quote it if it is a name"
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # a NUL, and halves of pairs in UTF-16


class Refused(yaml.constructor.ConstructorError):
    """What is YAML, and nothing that a configuration may hold: a field twice, too deep, too large."""

    @property
    def line(self) -> int:
        assert self.problem_mark is not None
        return self.problem_mark.line + 1


class ConfigurationLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a field that is set twice, as YAML's specification wants it, and bombs."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.depth, self.aliased = 0, 0
        self.sizes: dict[int, int] = {}
        """Of each node that is composed, by its id: how many values it is, those of its aliases included."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise Refused(problem=f"is nested more than {MOST_DEPTH} deep; write it flatter", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is None:
            return None
        if not alias:
            self.sizes[id(node)] = 1 + sum(self.sizes[id(part)] for part in parts_of(node))
            return node
        if id(node) not in self.sizes:
            raise Refused(problem="an alias (*) is inside what it names; write it out", problem_mark=mark)
        self.aliased += self.sizes[id(node)]
        if self.aliased > MOST_ALIASED:
            what = f"aliases (*) repeat more than {MOST_ALIASED:,} values; write out what is meant"
            raise Refused(problem=what, problem_mark=mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return known_text(super().construct_object(node, deep), node)
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML lets int(), float() and datetime() raise: 2026-13-45, !!int "", 1e5000
            given = node.value if isinstance(node, yaml.ScalarNode) else "this"
            what = f"{given} is no {node.tag.rpartition(':')[2]}; fix it, or quote it"
            raise Refused(problem=what, problem_mark=node.start_mark) from error

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number. Those of thousands of digits take Python minutes, or are refused by it."""
        if len(str(node.value)) > MOST_SIGNS or abs(number := super().construct_yaml_int(node)) > MOST_NUMBER:
            what = "a whole number beyond 64 bits; if it is a name, quote it"
            raise Refused(problem=what, problem_mark=node.start_mark)
        if OTHER_BASE.fullmatch(text := str(node.value)):
            raise Refused(problem=f"{text} is {number} for YAML; {OTHER_MEANING}", problem_mark=node.start_mark)
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """A number with a fraction, but for 1:30.5."""
        if ":" in (text := str(node.value)):
            raise Refused(
                problem=f"{text[:MOST_SIGNS]} is minutes for YAML; {OTHER_MEANING}", problem_mark=node.start_mark
            )
        return super().construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        if not isinstance(node, yaml.MappingNode):  # !!set 1
            what = f"{node.value} is no {node.tag.rpartition(':')[2]}; fix it, or quote it"
            raise Refused(problem=what, problem_mark=node.start_mark)
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if isinstance(name, Hashable) and name in lines:
                what = f"{name} is set in line {lines[name]} already; keep one of them"
                raise Refused(problem=what, problem_mark=key.start_mark)
            if isinstance(name, Hashable):
                lines[name] = line
        return super().construct_mapping(node, deep)


ConfigurationLoader.add_constructor("tag:yaml.org,2002:int", ConfigurationLoader.construct_yaml_int)
ConfigurationLoader.add_constructor("tag:yaml.org,2002:float", ConfigurationLoader.construct_yaml_float)


def known_text(value: Any, node: yaml.Node) -> Any:
    """`value`, unless it is a text that neither a file's name nor UTF-8 can hold. Raises Refused."""
    if isinstance(value, str) and NO_TEXT.search(value):
        what = f"{value.encode('unicode_escape').decode()} holds a character that no text has; leave it out"
        raise Refused(problem=what, problem_mark=node.start_mark)
    return value


def parts_of(node: yaml.Node) -> list[yaml.Node]:
    """The nodes right below one."""
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def parse_yaml(text: str) -> Any:
    """Parses YAML. Raises Refused, or another of yaml.YAMLError."""
    loader = ConfigurationLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
