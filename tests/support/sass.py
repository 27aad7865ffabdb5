"""Reads SASS as nvdisasm prints it: basic blocks, natural loops, what one trip of a loop runs.

Each instruction knows the lines of source that it is inlined from, so that what a path skips, and
how often a loop runs, can be said in the words of the source.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Line = tuple[str, int]  # a file, its name in csrc/ or without folders, and a number from 1 on

PRODUCT = re.compile(r"HG?MMA\b")


class Instruction(NamedTuple):
    text: str  # with its predicate, without its address
    lines: tuple[Line, ...]  # the innermost first

    @property
    def opcode(self) -> str:
        """Its name with modifiers, such as `LDS.64`; ".SS" more of a product of two operands in
        shared memory."""
        name, _, operands = re.sub(r"^@!?U?P\w+\s+", "", self.text).partition(" ")
        return name + (".SS" if re.match(r"R\w+, gdesc", operands) else "")


class Block(NamedTuple):
    code: list[Instruction]
    follows: list[int]  # the blocks that may run next


class Loop(NamedTuple):
    header: int
    blocks: frozenset[int]


def kernels(text: str) -> Iterator[tuple[str, list[Block]]]:
    """Every kernel of a dump with the blocks of its code, the entry first."""
    for part in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, code = part.partition(",")
        yield name, blocks(code)


def blocks(text: str) -> list[Block]:
    pieces: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    lines: list[Line] = []
    between = True  # a new block of line information replaces the one before it
    for row in text.splitlines():
        if found := re.match(
            r"\s*//## File \"(?:[^\"]*/csrc/|[^\"]*/)?([^\"]+)\", line (\d+)", row
        ):
            if between:
                lines = []
            lines.append((found[1], int(found[2])))
            between = False
        elif found := re.match(r"([.$\w]+):", row):
            if pieces[-1]:
                pieces.append([])
            labels[found[1]] = len(pieces) - 1
            between = True
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", row):
            pieces[-1].append(Instruction(found[1], tuple(lines)))
            between = True
            if re.match(r"BRA|BRX|EXIT|RET|BREAK", pieces[-1][-1].opcode):
                pieces.append([])
    while not pieces[-1]:
        pieces.pop()
    return [Block(code, _follows(k, code, labels, len(pieces))) for k, code in enumerate(pieces)]


def _follows(at: int, code: list[Instruction], labels: dict[str, int], end: int) -> list[int]:
    last = code[-1]
    following = [at + 1] if at + 1 < end else []
    conditional = last.text.startswith("@")
    target = re.search(r"`\(([.$\w]+)\)$", last.text)
    if last.opcode.startswith("BRA") and target:
        conditional |= bool(re.match(r"BRA\S*\s+!?U?P\d", re.sub(r"^@\S+\s+", "", last.text)))
        if last.opcode == "BRA.DIV":  # for lanes that are not together, which ours are
            return following
        there = labels[target[1]]
        return sorted({*following, there}) if conditional else [there]
    if re.match(r"BRX|EXIT|RET", last.opcode):
        return following if conditional else []
    return following


def dominators(graph: list[Block]) -> list[set[int]]:
    """The blocks that every way from the entry to a block passes; none, if there is no way."""
    before: dict[int, list[int]] = {k: [] for k in range(len(graph))}
    reached, waiting = {0}, [0]
    while waiting:
        block = waiting.pop()
        for after in graph[block].follows:
            before[after].append(block)
            if after not in reached:
                reached.add(after)
                waiting.append(after)
    found: list[set[int]] = [set(reached) if k in reached else set() for k in range(len(graph))]
    found[0] = {0}
    changes = True
    while changes:
        changes = False
        for block in sorted(reached - {0}):
            now = {block} | set.intersection(*(found[k] for k in before[block]))
            changes |= now != found[block]
            found[block] = now
    return found


def loops(graph: list[Block]) -> list[Loop]:
    """The natural loops, those of one header together, the smallest first."""
    over = dominators(graph)
    before: dict[int, list[int]] = {k: [] for k in range(len(graph))}
    for k, block in enumerate(graph):
        for after in block.follows if over[k] else ():
            before[after].append(k)
    found: dict[int, set[int]] = {}
    for k, block in enumerate(graph):
        for header in set(block.follows) & over[k]:
            body = found.setdefault(header, {header})
            waiting = [k]
            while waiting:
                one = waiting.pop()
                if one not in body:
                    body.add(one)
                    waiting += before[one]
    return sorted(
        (Loop(h, frozenset(b)) for h, b in found.items()), key=lambda loop: len(loop.blocks)
    )


def opcodes(graph: list[Block], which: Iterable[int]) -> Counter[str]:
    return Counter(one.opcode for k in which for one in graph[k].code)


def main_loop(graph: list[Block]) -> Loop:
    """The innermost loop that holds all matrix products of loops and an exponential.

    The products alone would be too few: a loop over the numbers of a row may hold all of them.
    """

    def products(which: Iterable[int]) -> int:
        return sum(n for op, n in opcodes(graph, which).items() if PRODUCT.match(op))

    every = products({k for loop in loops(graph) for k in loop.blocks})
    found: list[Loop] = []
    for loop in loops(graph):  # the smallest first
        if products(loop.blocks) == every > 0 and opcodes(graph, loop.blocks)["MUFU.EX2"]:
            found += [] if any(k.blocks < loop.blocks for k in found) else [loop]
    if len(found) != 1:
        raise ValueError(f"{len(found)} loops, not 1, hold the {every} matrix products")
    return found[0]


# An instruction that a path is known to avoid weighs as much as this many that it may run, in a
# block of which they are more than half: the compiler moves a few of them to other ways.
AVOIDED = -10

Avoided = Callable[[int, Instruction], bool]  # is this instruction of this block off the path?


class Path:
    """What one trip of a loop runs: the heaviest way around it, loops inside as often as they run.

    Args:
        avoided: what is off the path, unless every way passes it.
        trips: for a loop inside, its trips of each kind: how often, and what else these avoid.
    """

    def __init__(
        self,
        graph: list[Block],
        avoided: Avoided,
        trips: Callable[[Loop], list[tuple[float, Avoided]]],
    ) -> None:
        self.graph, self.avoided, self.trips = graph, avoided, trips
        self.loops = loops(graph)

    def around(self, loop: Loop) -> Counter[str]:
        """How often each opcode runs."""
        return self._heaviest(loop, self.avoided)[1]

    def _heaviest(self, loop: Loop, avoided: Avoided) -> tuple[float, Counter[str]]:
        # The largest loops inside are nodes, named by their headers.
        inside = [k for k in self.loops if k.blocks < loop.blocks]
        largest = {
            k.header: k for k in inside if not any(k.blocks < other.blocks for other in inside)
        }
        node = {k: k for k in loop.blocks}
        for header, inner in largest.items():
            node |= dict.fromkeys(inner.blocks, header)
        follows: dict[int, set[int]] = {node[k]: set() for k in loop.blocks}
        ends = set()
        for k in loop.blocks:
            for after in self.graph[k].follows:
                if after == loop.header:
                    ends.add(node[k])
                elif after in loop.blocks and node[after] != node[k]:
                    follows[node[k]].add(node[after])

        def cost(one: int) -> tuple[float, Counter[str]]:
            if one not in largest:
                code = self.graph[one].code
                off = sum(avoided(one, k) for k in code)
                mostly = 2 * off > len(code)
                here = float(len(code) + (AVOIDED - 1) * off * mostly)
                return here, Counter(k.opcode for k in code)
            weight, total = 0.0, Counter[str]()
            for times, also in self.trips(largest[one]):
                each, runs = self._heaviest(
                    largest[one],
                    lambda block, k, also=also: avoided(block, k) or also(block, k),  # type: ignore[misc]
                )
                weight += times * each
                total += Counter({k: times * n for k, n in runs.items()})
            return weight, total

        best: dict[int, tuple[float, Counter[str]]] = {}  # from here to an end of the trip
        for one in reversed(_in_order(node[loop.header], follows)):
            ways = [best[after] for after in sorted(follows[one]) if after in best]
            ways += [(0.0, Counter())] if one in ends else []
            if ways:
                (weight, runs), (here, ran) = max(ways, key=lambda way: way[0]), cost(one)
                best[one] = weight + here, runs + ran
        return best[node[loop.header]]


def no_trips(loop: Loop) -> list[tuple[float, Avoided]]:
    """For code that has no loop inside its loops."""
    raise ValueError(f"there is a loop inside, at block {loop.header}")


def _in_order(first: int, follows: dict[int, set[int]]) -> list[int]:
    """Nodes of a graph without cycles, each before all that follow it."""
    done: list[int] = []
    waiting, begun = [first], set()
    while waiting:
        one = waiting[-1]
        ahead = [after for after in sorted(follows[one]) if after not in begun]
        begun.add(one)
        if ahead:
            waiting.append(ahead[0])
        else:
            done.append(waiting.pop())
    return done[::-1]
