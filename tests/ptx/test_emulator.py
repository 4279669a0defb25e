"""The emulator alone, on hand-written PTX with a known result or fault."""

from __future__ import annotations

import math

import pytest
import torch

from ptx.emulator import launch
from ptx.values import PTXFault, PTXUnsupported

REGISTERS = """
    .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<64>; .reg .f32 %f<64>; .reg .b64 %rd<32>;
    .shared .align 16 .b8 area[1024];
"""
# Every kernel: %r0 is the thread, %rd0 and %rd1 the two pointers, %rd2 and %rd3 this thread's 4 bytes of them.
BEGIN = """
    mov.u32 %r0, %tid.x;
    ld.param.u64 %rd0, [a]; ld.param.u64 %rd1, [b];
    mul.wide.u32 %rd4, %r0, 4;
    add.s64 %rd2, %rd0, %rd4; add.s64 %rd3, %rd1, %rd4;
"""


def run(body: str, a: torch.Tensor, b: torch.Tensor, *, grid: int = 1, threads: int = 32, **options: object) -> None:
    """Launches a kernel of two pointers, which are ``a`` and ``b``."""
    entry = f".visible .entry kernel(.param .u64 a, .param .u64 b)\n{{{REGISTERS}{BEGIN}{body}\n ret;\n}}"
    launch(".version 8.0\n.target sm_80\n" + entry, grid, a, b, num_threads=threads, **options)


def floats(*values: float, count: int = 32) -> torch.Tensor:
    return torch.tensor(values) if values else torch.arange(count, dtype=torch.float32)


# --- arithmetic -----------------------------------------------------------------------------------------------


def test_each_thread_reads_and_writes_its_own():
    a, b = floats(count=64), torch.zeros(64)
    run("ld.global.f32 %f1, [%rd2]; fma.rn.f32 %f2, %f1, %f1, 0f3F800000; st.global.f32 [%rd3], %f2;", a, b, threads=64)
    assert torch.equal(b, a * a + 1)


@pytest.mark.parametrize(
    ("instruction", "dtype"),
    [("cvt.rn.bf16.f32", torch.bfloat16), ("cvt.rn.f16.f32", torch.float16)],
)
def test_conversions_round_as_torch_does(instruction, dtype):
    a = torch.cat([torch.randn(24, generator=torch.Generator().manual_seed(0)), floats(0.0, -0.0, 65519.9, 65520.0)])
    a = torch.cat([a, floats(1e-8, math.inf, -math.inf, 1 + 2**-8)])
    b = torch.zeros(32, dtype=torch.int32)
    run(f"ld.global.f32 %f1, [%rd2]; {instruction} %h1, %f1; cvt.u32.u16 %r1, %h1; st.global.u32 [%rd3], %r1;", a, b)
    assert torch.equal(b.to(torch.int16).view(dtype), a.to(dtype))


def test_ftz_flushes_and_can_be_switched_off():
    tiny = torch.full((32,), 1e-40)
    body = "ld.global.f32 %f1, [%rd2]; add.ftz.f32 %f2, %f1, %f1; st.global.f32 [%rd3], %f2;"
    for ftz, expected in ((True, torch.zeros(32)), (False, tiny + tiny)):
        b = torch.ones(32)
        run(body, tiny, b, ftz=ftz)
        assert torch.equal(b, expected)


def test_noise_stays_within_the_bound_of_the_instruction():
    a, b, plain = torch.linspace(-8, 8, 32), torch.zeros(32), torch.zeros(32)
    body = "ld.global.f32 %f1, [%rd2]; ex2.approx.f32 %f2, %f1; st.global.f32 [%rd3], %f2;"
    run(body, a, plain)
    run(body, a, b, noise=1.0)
    assert not torch.equal(b, plain)
    torch.testing.assert_close(b, plain, rtol=2**-21, atol=0)
    torch.testing.assert_close(plain, a.exp2(), rtol=2**-23, atol=0)


# --- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("ld.global.f32 %f1, [%rd2+4];", r"ld\.global\.f32.*byte offset 128 \+ 4 > 128.*thread 31"),
        ("ld.global.f32 %f1, [%rd0+2];", "misaligned global access to arg0"),
        ("ld.global.v2.f32 {%f1, %f2}, [%rd2];", "vector access not aligned to its full width"),
        ("mov.u64 %rd5, 0; ld.global.f32 %f1, [%rd5];", r"ld\.global\.f32.*unmapped"),
        ("mov.u32 %r1, 1022; ld.shared.b32 %r2, [%r1];", "shared address 1022"),
        ("trap;", "trap"),
    ],
)
def test_a_wrong_access_names_instruction_and_place(body, words):
    with pytest.raises(PTXFault, match=words):
        run(body, floats(), floats())


def test_a_masked_thread_may_point_anywhere():
    a, b = floats(), torch.zeros(32)
    run("setp.lt.u32 %p1, %r0, 31; @%p1 ld.global.f32 %f1, [%rd2+4]; @%p1 st.global.f32 [%rd3], %f1;", a, b)
    assert torch.equal(b, torch.cat([a[1:], torch.zeros(1)]))


def test_a_view_reaches_from_its_first_element_to_the_end_of_its_storage():
    whole = floats(count=64)
    b = torch.zeros(32)
    run("ld.global.f32 %f1, [%rd2]; st.global.f32 [%rd3], %f1;", whole[32:], b)
    assert torch.equal(b, whole[32:])
    with pytest.raises(PTXFault, match="byte offset"):
        run("ld.global.f32 %f1, [%rd2+128];", whole[32:], b)


def test_shared_memory_is_nan_until_it_is_written():
    b = torch.zeros(32)
    run("shl.b32 %r1, %r0, 2; ld.shared.f32 %f1, [%r1]; st.global.f32 [%rd3], %f1;", floats(), b)
    assert b.isnan().all()


COPY = """
    shl.b32 %r1, %r0, 2;
    cp.async.ca.shared.global [%r1], [%rd2], 4;
    cp.async.commit_group;
    {wait}
    ld.shared.f32 %f1, [%r1]; st.global.f32 [%rd3], %f1;
"""


def test_an_asynchronous_copy_lands_where_it_is_waited_for():
    a, b = floats(), torch.zeros(32)
    run(COPY.format(wait="cp.async.wait_group 0;"), a, b)
    assert torch.equal(b, a)
    run(COPY.format(wait="cp.async.wait_group 1;"), a, b)
    assert b.isnan().all()


def test_atomics_add_up_in_any_order():
    body = "ld.global.f32 %f1, [%rd2]; red.global.add.f32 [%rd1], %f1;"
    a = torch.tensor([1e8, *([1.0] * 31)])
    sums = set()
    for seed in range(8):
        b = torch.zeros(1)
        run(body, a, b, atomic_seed=seed)
        sums.add(float(b))
    assert len(sums) > 1  # float addition sees the order
    tickets, b = torch.zeros(32, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    run("atom.global.add.u32 %r1, [%rd1], 1; st.global.u32 [%rd2], %r1;", tickets, b, grid=5, batch=2)
    assert b.item() == 5 * 32
    assert sorted(tickets.tolist()) == list(range(4 * 32, 5 * 32))  # the last block's


# --- threads that go their own ways ----------------------------------------------------------------------------

REVERSED = """
    shl.b32 %r1, %r0, 2;
    ld.global.f32 %f1, [%rd2]; st.shared.f32 [%r1], %f1;
    {barrier}
    sub.u32 %r2, 127, %r0; shl.b32 %r2, %r2, 2;
    ld.shared.f32 %f2, [%r2]; st.global.f32 [%rd3], %f2;
"""


def test_a_missing_barrier_shows_under_some_schedules():
    a = floats(count=128)

    def wrong(barrier: str) -> int:
        found = 0
        for seed in range(8):
            b = torch.zeros(128)
            run(REVERSED.format(barrier=barrier), a, b, threads=128, sched_seed=seed)
            found += not torch.equal(b, a.flip(0))
        return found

    assert wrong("bar.sync 0;") == 0
    assert wrong("bra NEXT;\nNEXT:") > 0


def test_branches_part_and_meet_again():
    a, b = floats(), torch.zeros(32)
    body = """
        ld.global.f32 %f1, [%rd2];
        setp.lt.u32 %p1, %r0, 10;
        @%p1 bra SMALL;
        add.f32 %f1, %f1, 0f42C80000;
        bra DONE;
        SMALL: neg.f32 %f1, %f1;
        DONE: st.global.f32 [%rd3], %f1;
    """
    run(body, a, b)
    assert torch.equal(b, torch.where(a < 10, -a, a + 100))


def test_a_loop_ends_and_an_endless_one_is_named():
    b = torch.zeros(32, dtype=torch.int32)
    body = """
        mov.u32 %r1, 0;
        AGAIN: add.u32 %r1, %r1, 1;
        setp.lt.u32 %p1, %r1, {bound};
        @%p1 bra AGAIN;
        st.global.u32 [%rd3], %r1;
    """
    run(body.format(bound="%r0"), floats(), b)
    assert b.tolist() == [1, *range(1, 32)]
    with pytest.raises(PTXFault, match="endless loop"):
        run("AGAIN: add.u32 %r1, %r0, 1;\nbra AGAIN;", floats(), b, max_steps=100)


def test_threads_that_ended_hold_up_no_barrier():
    a, b = floats(count=64), torch.zeros(64)
    run(
        "setp.lt.u32 %p1, %r0, 32;\n@%p1 bra END;\nbar.sync 0;\nst.global.f32 [%rd3], 0f3F800000;\nEND:",
        a,
        b,
        threads=64,
    )
    assert torch.equal(b, (a >= 32).float())


def test_a_collective_needs_its_whole_warp():
    whole = "shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1; st.global.u32 [%rd3], %r1;"
    b = torch.zeros(32, dtype=torch.int32)
    run(whole, floats(), b)
    assert b.tolist() == [lane ^ 1 for lane in range(32)]
    with pytest.raises(PTXFault, match="diverged warp"):
        run(f"setp.lt.u32 %p1, %r0, 7;\n@%p1 bra SKIP;\n{whole}\nSKIP: add.u32 %r1, %r0, 1;", floats(), b)


# --- tensor cores ---------------------------------------------------------------------------------------------


def test_a_matrix_instruction_is_the_product_of_its_fragments():
    """``mma.m16n8k16``: where each lane's elements lie is the PTX manual's, written here once more."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=draw).to(torch.bfloat16) for shape in ((16, 16), (16, 8)))
    a, b = torch.zeros(32, 6, dtype=torch.int32), torch.zeros(32, 4)
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        parts = [left[row + 8 * (i % 2), column + 8 * (i // 2) :][:2] for i in range(4)]
        parts += [right[column + 8 * i : column + 8 * i + 2, row] for i in range(2)]
        a[lane] = torch.cat([part.contiguous().view(torch.int32) for part in parts])
    body = """
        mul.wide.u32 %rd5, %r0, 24; add.s64 %rd5, %rd0, %rd5;
        mul.wide.u32 %rd6, %r0, 16; add.s64 %rd6, %rd1, %rd6;
    """
    body += "".join(f"ld.global.b32 %r{10 + i}, [%rd5+{4 * i}];\n" for i in range(6))
    body += "".join(f"mov.f32 %f{i}, 0f3F800000;\n" for i in range(4))
    body += """mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
        {%f4, %f5, %f6, %f7}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f0, %f1, %f2, %f3};"""
    body += "".join(f"st.global.f32 [%rd6+{4 * i}], %f{4 + i};\n" for i in range(4))
    run(body, a, b)
    expected = left.float() @ right.float() + 1
    found = torch.zeros(16, 8)
    for lane in range(32):
        for i in range(4):
            found[lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2] = b[lane, i]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- what it does not know ------------------------------------------------------------------------------------


def test_what_is_not_modelled_is_refused_by_name():
    with pytest.raises(PTXUnsupported, match=r"cp\.async\.bulk"):
        run("cp.async.bulk.wait_group 0;", floats(), floats())
    with pytest.raises(TypeError, match="CPU tensors"):
        run("add.u32 %r1, %r0, 1;", torch.empty(32, device="meta"), floats())


def test_instructions_are_counted_per_thread():
    stats: dict[str, int] = {}
    run("setp.lt.u32 %p1, %r0, 8; @%p1 st.global.u32 [%rd3], %r0;", floats(), floats(), grid=3, stats=stats)
    assert stats["setp.lt.u32"] == 3 * 32
    assert stats["st.global.u32"] == 3 * 32  # counted where it is issued, masked or not
