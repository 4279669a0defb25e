"""Collectives of a warp, and instructions that do nothing here."""

from __future__ import annotations

import numpy as np

from ptx.operands import Operands
from ptx.values import PTXFault


class Warps(Operands):
    """``op_name(instruction)`` returns the closure that runs it."""

    # warp collectives
    def op_shfl(self, ins):
        mode = ins.mods[1]
        dp = ins.args[0].split("|")
        d = self.dst(dp[0])
        pd = self.dst(dp[1]) if len(dp) > 1 else None
        a, b, c = self.src(ins.args[1], "b32"), self.src(ins.args[2], "u32"), self.src(ins.args[3], "u32")
        what = ins.text

        def run(st, m):
            st.converged(m, what)
            x = st.full(a(st)).reshape(-1, 32)
            bv = (st.full(b(st)).reshape(-1, 32) & np.uint32(31)).astype(np.int64)
            cv = st.full(c(st)).reshape(-1, 32).astype(np.int64)
            lane = np.arange(32)[None]
            seg = (cv >> 8) & 31
            cl = cv & 31
            mx = (lane & seg) | (cl & ~seg)
            mn = lane & seg
            if mode == "bfly":
                j = lane ^ bv
                ok = j <= mx
            elif mode == "idx":
                j = mn | (bv & ~seg)
                ok = j <= mx
            elif mode == "up":
                j = lane - bv
                ok = j >= mx
            else:
                j = lane + bv
                ok = j <= mx
            j = np.where(ok, j, np.broadcast_to(lane, j.shape))
            d(st, np.take_along_axis(x, j, 1).reshape(-1), m)
            if pd:
                pd(st, np.broadcast_to(ok, x.shape).reshape(-1).copy(), m)

        return run

    def op_redux(self, ins):
        t = ins.mods[-1]
        d = self.dst(ins.args[0])
        a = self.src(ins.args[1], t)
        what = ins.text
        op = next(q for q in ins.mods if q in ("add", "min", "max", "and", "or", "xor"))
        nan = "NaN" in ins.mods
        f = {
            "add": np.add,
            "min": np.minimum if nan or t[0] != "f" else np.fmin,
            "max": np.maximum if nan or t[0] != "f" else np.fmax,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[op]
        pre = np.abs if "abs" in ins.mods else (lambda x: x)

        def run(st, m):
            st.converged(m, what)
            y = f.reduce(pre(st.full(a(st))).reshape(-1, 32), axis=1)
            d(st, np.repeat(y, 32), m)

        return run

    def op_vote(self, ins):
        mode = ins.mods[1]
        p = self.src(ins.args[1], "pred")
        d = self.dst(ins.args[0])

        def run(st, m):
            q = st.full(p(st)).reshape(-1, 32)
            if m is not None:
                mm = m.reshape(-1, 32)
                q = (q & mm) if mode != "all" else (q | ~mm)
            if mode == "ballot":
                r = (q.astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(1, dtype=np.uint32)
            else:
                r = q.all(1) if mode == "all" else q.any(1)
            d(st, np.repeat(r, 32), m)

        return run

    def op_activemask(self, ins):
        d = self.dst(ins.args[0])

        def run(st, m):
            q = np.ones((st.n // 32, 32), bool) if m is None else m.reshape(-1, 32)
            d(st, np.repeat((q.astype(np.uint32) << np.arange(32, dtype=np.uint32)).sum(1, dtype=np.uint32), 32), m)

        return run

    def op_elect(self, ins):
        dp = ins.args[0].split("|")
        d = self.dst(dp[0])
        p = self.dst(dp[1])

        def run(st, m):
            d(st, np.zeros(1, np.uint32), m)
            p(st, st.laneid == 0, m)

        return run

    # no-ops and errors
    def _nop(self, ins):
        return lambda *_: None

    op_membar = op_fence = op_prefetch = op_griddepcontrol = op_nanosleep = op_discard = op_applypriority = _nop

    def op_trap(self, ins):
        def run(st, m):
            raise PTXFault("trap (device_assert or unreachable) executed")

        return run
