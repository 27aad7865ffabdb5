"""The counts of instructions: loops of SASS written by hand, and what a budget objects to."""

import re
from collections import Counter

import pytest

pytest.importorskip("triton")

from support import cuda_counts, instruction_budget, sass

# A loop over tiles (.L_tile) around one over the numbers of a row (.L_row), which holds all
# products, and one over terms (.L_term); before it a loop that looks alike but for the products.
SASS = """
	.section	.text.sweep,"ax",@progbits
sweep:
.text.sweep:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_first:
        /*0010*/                   MUFU.EX2 R2, R2 ;
        /*0020*/               @P0 BRA `(.L_first) ;
.L_tile:
	//## File "/home/somebody/csrc/cuda/kernels/mainloop.h", line 7 inlined at "/home/a.h", line 9
	//## File "/home/a.h", line 9
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/                   BSSY B0, `(.L_joined) ;
        /*0050*/               @P1 BRA `(.L_joined) ;
	//## File "/home/somebody/csrc/cuda/tile/scheduler.h", line 3
        /*0060*/                   LDG.E R3, [R4.64] ;
        /*0070*/                   LDG.E R5, [R4.64] ;
.L_joined:
	//## File "/home/a.h", line 9
        /*0080*/                   BSYNC B0 ;
.L_row:
        /*0090*/                   LDSM.16.M88.4 R8, [R2] ;
        /*00a0*/                   HMMA.16816.F32 R4, R8, R10, R4 ;
        /*00b0*/              @!P0 BRA `(.L_row) ;
.L_term:
        /*00c0*/              @!P2 BRA `(.L_other) ;
        /*00d0*/                   MUFU.EX2 R2, R2 ;
        /*00e0*/                   FADD R2, R2, R3 ;
        /*00f0*/                   BRA `(.L_both) ;
.L_other:
	//## File "/home/b.h", line 5
        /*0100*/                   FMUL R2, R2, R3 ;
.L_both:
        /*0110*/              @!P3 BRA P0, `(.L_term) ;
        /*0120*/               @P4 EXIT ;
        /*0130*/                   BRA.DIV UR4, `(.L_apart) ;
        /*0140*/                   BRA `(.L_tile) ;
.L_apart:
        /*0150*/                   EXIT ;
.L_end:
        /*0160*/                   BRA `(.L_end);
"""
((NAME, GRAPH),) = sass.kernels(SASS)


def of_loops(loop: sass.Loop) -> Counter[str]:
    return sass.opcodes(GRAPH, loop.blocks)


def test_loops_are_found_by_dominators_and_back_edges() -> None:
    assert NAME == "sweep"
    found = sass.loops(GRAPH)
    assert len(found) == 4  # what follows an exit is not reached, whatever it loops over
    tile = found[-1]
    assert all(loop.blocks < tile.blocks for loop in found if of_loops(loop)["HMMA.16816.F32"] == 1
               and loop != tile)  # fmt: skip
    for loop in found:
        over = sass.dominators(GRAPH)
        assert all(loop.header in over[block] for block in loop.blocks)


def test_a_block_that_two_ways_lead_to_is_dominated_by_neither() -> None:
    over = sass.dominators(GRAPH)
    (joined,) = (k for k, block in enumerate(GRAPH) if block.code[0].opcode == "BSYNC")
    (skipped,) = (k for k, block in enumerate(GRAPH) if block.code[0].opcode == "LDG.E")
    assert skipped not in over[joined]
    assert skipped - 1 in over[joined]


def test_the_main_loop_is_the_innermost_with_all_products_and_an_exponential() -> None:
    loop = sass.main_loop(GRAPH)
    assert of_loops(loop)["BAR.SYNC.DEFER_BLOCKING"] == 1
    assert of_loops(loop)["MUFU.EX2"] == 1
    without = [
        block._replace(code=[one for one in block.code if one.opcode != "MUFU.EX2"])
        for block in GRAPH
    ]
    with pytest.raises(ValueError, match="0 loops, not 1, hold the 1 matrix products"):
        sass.main_loop(without)


def trips(loop: sass.Loop) -> list[tuple[float, sass.Avoided]]:
    def plain(_block: int, _instruction: sass.Instruction) -> bool:
        return False

    if of_loops(loop)["HMMA.16816.F32"]:
        return [(4, plain)]
    return [(1, plain), (1, lambda _, one: one.opcode in ("MUFU.EX2", "FADD"))]


def test_a_path_avoids_what_it_is_told_to_and_runs_loops_as_often_as_they_run() -> None:
    line = ("cuda/tile/scheduler.h", 3)
    path = sass.Path(GRAPH, lambda _, one: line in one.lines, trips)
    counts = path.around(sass.main_loop(GRAPH))
    assert counts["LDG.E"] == 0
    assert (counts["HMMA.16816.F32"], counts["LDSM.16.M88.4"]) == (4, 4)
    assert (counts["MUFU.EX2"], counts["FMUL"]) == (1, 1)  # one term by either way
    # 3 before the join and 1 at it, 4 rounds of 3, 1 + 3 + 1 and 1 + 1 + 1, 3 to the end.
    assert counts.total() == 3 + 1 + 4 * 3 + 5 + 3 + 3
    everything = sass.Path(GRAPH, lambda *_: False, trips).around(sass.main_loop(GRAPH))
    assert everything["LDG.E"] == 2


def test_an_instruction_that_was_moved_takes_no_block_off_the_path() -> None:
    def off(_block: int, one: sass.Instruction) -> bool:
        return one.opcode == "MUFU.EX2"  # one of three

    def twice(loop: sass.Loop) -> list[tuple[float, sass.Avoided]]:
        rounds = 4 if of_loops(loop)["HMMA.16816.F32"] else 2
        return [(rounds, lambda *_: False)]

    counts = sass.Path(GRAPH, off, twice).around(sass.main_loop(GRAPH))
    assert (counts["MUFU.EX2"], counts["FMUL"]) == (2, 0)


def test_lines_are_those_of_the_last_word_on_an_instruction() -> None:
    lines = {one.opcode: one.lines for block in GRAPH for one in block.code}
    assert lines["BAR.SYNC.DEFER_BLOCKING"] == (("cuda/kernels/mainloop.h", 7), ("a.h", 9))
    assert lines["BSYNC"] == (("a.h", 9),)
    assert lines["LDC"] == ()


def test_a_product_of_two_operands_in_shared_memory_is_told_from_one_of_registers() -> None:
    def opcode(text: str) -> str:
        return sass.Instruction(text, ()).opcode

    assert opcode("HGMMA.64x64x16.F32 R24, gdesc[UR8], R24") == "HGMMA.64x64x16.F32.SS"
    assert opcode("@!P1 HGMMA.64x64x16.F32 R24, R4, gdesc[UR8], R24") == "HGMMA.64x64x16.F32"
    lines = instruction_budget.lines
    assert lines("HGMMA.64x64x16.F32.SS") == 2 * lines("HGMMA.64x64x16.F32") == 8
    assert lines("LDSM.16.MT88.4") == lines("LDGSTS.E.BYPASS.128") == 4
    assert cuda_counts.multiply_adds("HGMMA.64x64x16.F32.SS") == 64 * 64 * 16 / 4
    assert cuda_counts.multiply_adds("HMMA.16816.F32") == 16 * 8 * 16


KEY = ("cuda", 128, "forward")
BY = {"cuda": "nvcc 13.0"}
LINE = "cuda   128 forward    40.0 nvcc 13.0\n"


@pytest.mark.parametrize(
    ("counted", "wrong", "said"),
    [
        (44.0, "44.0 instructions a pair, .* grants 40.0: OVER BUDGET", ""),
        (40.04, "", ""),
        (39.5, "", ""),
        (36.0, "", "36.0 instructions a pair, of 40.0 granted; lower the budget"),
    ],
)
def test_a_budget_objects_to_more_and_mentions_less(counted: float, wrong: str, said: str) -> None:
    found = instruction_budget.objections(instruction_budget.budgets(LINE), {KEY: counted}, BY)
    for pattern, texts in zip((wrong, said), found, strict=True):
        assert len(texts) == bool(pattern)
        assert all(re.search(pattern, text) for text in texts)


def test_a_budget_of_another_compiler_is_skipped_and_none_is_missing() -> None:
    granted = instruction_budget.budgets(LINE)
    (skipped,) = instruction_budget.objections(granted, {KEY: 99.0}, {"cuda": "nvcc 12.9"})[1]
    assert "SKIPPED, the budget is of nvcc 13.0, and this is nvcc 12.9" in skipped
    assert "grants nothing" in instruction_budget.objections({}, {KEY: 99.0}, BY)[0][0]
    assert "is not counted" in instruction_budget.objections(granted, {}, BY)[0][0]


def test_budgets_are_lowered_and_never_raised() -> None:
    text = f"# a comment\n{LINE}"
    assert instruction_budget.lowered(text, {KEY: 50.0}, BY) == text
    assert instruction_budget.lowered(text, {KEY: 30.0}, {"cuda": "nvcc 12.9"}) == text
    assert instruction_budget.lowered(text, {KEY: 36.04}, BY) == text.replace("40.0", "36.0")


def test_what_a_tile_skips_stands_in_the_sources() -> None:
    assert cuda_counts.skipped()
    for names in cuda_counts.FILES.values():
        assert all(cuda_counts.shape(name).pairs in (16, 32) for name in names)
    with pytest.raises(AssertionError, match="has no line with 'nothing of the kind'"):
        cuda_counts.where("tile/mma.h", "nothing of the kind")
