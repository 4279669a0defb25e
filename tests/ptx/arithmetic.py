"""Arithmetic, logic, comparisons, moves and conversions."""

from __future__ import annotations

import numpy as np

from ptx.operands import Operands
from ptx.values import (
    SIGNED,
    TINY,
    UNSIGNED,
    PTXUnsupported,
    flush,
    numpy_type,
    type_info,
)


class Arithmetic(Operands):
    """``op_name(instruction)`` returns the closure that runs it."""

    # arithmetic
    def isf(self, ins):
        return type_info(ins.mods[-1])[0] in ("f", "bf16", "bf16x2", "f16x2", "f32x2")

    def _carry(self, ins, prod, use_cc, sub=False):
        """add/addc/mad/madc/sub/subc with the carry flag, 32-bit operands."""
        t = ins.mods[-1]
        b = type_info(t)[1]
        if b != 32:
            raise PTXUnsupported(ins.text)
        d = self.dst(ins.args[0])
        s = [self.src(a, "u32") for a in ins.args[1:]]
        cc, hi = "cc" in ins.mods, "hi" in ins.mods
        M = np.uint64(0xFFFFFFFF)

        def run(st, m):
            v = [x(st).astype(np.uint64) for x in s]
            if prod:
                if hi and t[0] == "s":
                    p = (
                        (s[0](st).view(np.int32).astype(np.int64) * s[1](st).view(np.int32).astype(np.int64)) >> 32
                    ).view(np.uint64)
                else:
                    p = v[0] * v[1]
                    p = p >> np.uint64(32) if hi else p
                x, y = p & M, v[2]
            else:
                x, y = v[0], v[1]
            if sub:
                r = x - y - (st.cc if use_cc else np.uint64(0))
            else:
                r = x + y + (st.cc if use_cc else np.uint64(0))
            if cc:
                c = (r >> np.uint64(32)) & np.uint64(1)
                st.cc = c if m is None else np.where(m, c, st.cc)
            d(st, (r & M).astype(np.uint32), m)

        return run

    def op_addc(self, ins):
        return self._carry(ins, False, True)

    def op_subc(self, ins):
        return self._carry(ins, False, True, True)

    def op_madc(self, ins):
        return self._carry(ins, True, True)

    def op_add(self, ins):
        def f(a, b):
            return a + b

        if "cc" in ins.mods:
            return self._carry(ins, False, False)
        return self._fl(ins, f, f, 2) if self.isf(ins) else self._alu(ins, f, 2)

    def op_sub(self, ins):
        def f(a, b):
            return a - b

        if "cc" in ins.mods:
            return self._carry(ins, False, False, True)
        return self._fl(ins, f, f, 2) if self.isf(ins) else self._alu(ins, f, 2)

    def op_mul(self, ins):
        if self.isf(ins):

            def f(a, b):
                return a * b

            return self._fl(ins, f, f, 2)
        return self._mulint(ins, None)

    def _mulint(self, ins, add):
        t = ins.mods[-1]
        k, b = type_info(t)
        if "wide" in ins.mods:
            dt = (SIGNED if k == "s" else UNSIGNED)[2 * b]

            def fn(x, y):
                return x.astype(dt) * y.astype(dt)

            tw = f"{k}{2 * b}"
        elif "hi" in ins.mods:
            if b == 32:
                dt = SIGNED[64] if k == "s" else UNSIGNED[64]
                o = numpy_type(t)

                def fn(x, y):
                    return ((x.astype(dt) * y.astype(dt)) >> dt(32)).astype(o)
            else:

                def mul(x, y):
                    return np.array([(int(p) * int(q)) >> b for p, q in np.broadcast(x, y)], dtype=object)

                def fn(x, y):
                    return np.array([int(v) & ((1 << b) - 1) for v in mul(x, y)], UNSIGNED[b])

            tw = t
        else:

            def fn(x, y):
                return x * y

            tw = t
        if add is None:
            return self._alu(ins, fn, 2, t)
        d = self.dst(ins.args[0])
        a, bb, c = self.src(ins.args[1], t), self.src(ins.args[2], t), self.src(ins.args[3], tw)
        return lambda st, m: d(st, fn(a(st), bb(st)) + c(st), m)

    def op_mad(self, ins):
        if "cc" in ins.mods:
            return self._carry(ins, True, False)
        return self.op_fma(ins) if self.isf(ins) else self._mulint(ins, True)

    op_mul24 = op_mul

    def op_fma(self, ins):
        t = ins.mods[-1]
        if t == "f64":
            L = np.longdouble
            return self._alu(ins, lambda a, b, c: (a.astype(L) * b + c).astype(np.float64), 3)

        def d64(a, b, c):
            return a.astype(np.float64) * b + c

        if t in ("f32", "f32x2"):
            return self._fl(ins, d64, lambda a, b, c: d64(a, b, c).astype(np.float32), 3)
        return self._fl(ins, d64, lambda a, b, c: d64(a, b, c).astype(a.dtype), 3)

    def op_div(self, ins):
        t = ins.mods[-1]
        if self.isf(ins):

            def f(a, b):
                return a / b

            if t == "f32" and ("approx" in ins.mods or "full" in ins.mods):
                return self._approx(ins, f, 2, rel=2.0**-22)
            return self._fl(ins, f, f, 2)
        k, _b = type_info(t)

        def idiv(x, y):
            y = np.where(y == 0, numpy_type(t)(1), y)
            if k == "s":
                q = np.abs(x.astype(np.int64)) // np.abs(y.astype(np.int64))
                return np.where((x < 0) != (y < 0), -q, q).astype(numpy_type(t))
            return x // y

        return self._alu(ins, idiv, 2)

    def op_rem(self, ins):
        return self._alu(ins, lambda x, y: np.fmod(x, np.where(y == 0, numpy_type(ins.mods[-1])(1), y)), 2)

    def op_neg(self, ins):
        if self.isf(ins):
            return self._fl(ins, np.negative, np.negative, 1)
        return self._alu(ins, lambda a: (~a) + a.dtype.type(1), 1)

    def op_abs(self, ins):
        return self._fl(ins, np.abs, np.abs, 1) if self.isf(ins) else self._alu(ins, np.abs, 1)

    def op_min(self, ins):
        f = np.minimum if ("NaN" in ins.mods or not self.isf(ins)) else np.fmin
        return self._mm(ins, f)

    def op_max(self, ins):
        f = np.maximum if ("NaN" in ins.mods or not self.isf(ins)) else np.fmax
        return self._mm(ins, f)

    def _mm(self, ins, f):
        n = len(ins.args) - 1
        g = f if n == 2 else (lambda a, b, c: f(f(a, b), c))
        return self._fl(ins, g, g, n) if self.isf(ins) else self._alu(ins, g, n)

    # approximate functions; bounds from the PTX ISA tables
    def _approx(self, ins, fn, n, rel=0.0, abs_=0.0):
        ftz = "ftz" in ins.mods and self.opt["ftz"]
        noise = self.opt["noise"]
        t = ins.mods[-1]
        rng = self.opt["rng"]

        def run(*a):
            if ftz:
                a = [flush(x) for x in a]
            y = fn(*[x.astype(np.float64) for x in a])
            if noise:
                u = rng.uniform(-noise, noise, size=y.shape)
                y = y * (1 + rel * u) + abs_ * u * np.isfinite(y) * (y != 0)
            y = y.astype(numpy_type(t))
            return flush(y) if ftz else y

        return self._alu(ins, run, n)

    def op_ex2(self, ins):
        if ins.mods[-1] != "f32":
            return self._fl(ins, np.exp2, lambda x: np.exp2(x.astype(np.float32)).astype(x.dtype), 1)
        return self._approx(ins, np.exp2, 1, rel=2.0**-22)

    def op_lg2(self, ins):
        return self._approx(ins, np.log2, 1, abs_=2.0**-22)

    def op_rsqrt(self, ins):
        return self._approx(ins, lambda x: 1 / np.sqrt(x), 1, rel=2.0**-22.9)

    def op_sqrt(self, ins):
        if "approx" in ins.mods:
            return self._approx(ins, np.sqrt, 1, rel=2.0**-23)
        return self._fl(ins, np.sqrt, np.sqrt, 1)

    def op_rcp(self, ins):
        def f(x):
            return 1 / x

        if "approx" in ins.mods and ins.mods[-1] == "f32":
            return self._approx(ins, f, 1, rel=2.0**-23)
        return self._fl(ins, f, lambda x: x.dtype.type(1) / x, 1)

    def op_sin(self, ins):
        return self._approx(ins, np.sin, 1, abs_=2.0**-20.5)

    def op_cos(self, ins):
        return self._approx(ins, np.cos, 1, abs_=2.0**-20.5)

    def op_tanh(self, ins):
        return self._approx(ins, np.tanh, 1, rel=2.0**-11)

    def op_copysign(self, ins):
        return self._alu(ins, lambda a, b: np.copysign(b, a), 2)

    def op_testp(self, ins):
        f = {
            "finite": np.isfinite,
            "infinite": np.isinf,
            "notanumber": np.isnan,
            "number": lambda x: ~np.isnan(x),
            "normal": lambda x: np.isfinite(x) & (np.abs(x) >= TINY),
            "subnormal": lambda x: (np.abs(x) < TINY) & (x != 0),
        }[ins.mods[0]]
        return self._alu(ins, f, 1)

    # logic
    def _logic(self, ins, f):
        if ins.mods[-1] == "pred":
            d = self.dst(ins.args[0])
            a, b = self.src(ins.args[1], "pred"), self.src(ins.args[2], "pred")
            return lambda st, m: d(st, f(a(st), b(st)), m)
        return self._alu(ins, f, 2)

    def op_and(self, ins):
        return self._logic(ins, lambda a, b: a & b)

    def op_or(self, ins):
        return self._logic(ins, lambda a, b: a | b)

    def op_xor(self, ins):
        return self._logic(ins, lambda a, b: a ^ b)

    def op_not(self, ins):
        return self._alu(ins, lambda a: ~a, 1)

    def op_cnot(self, ins):
        return self._alu(ins, lambda a: (a == 0).astype(a.dtype), 1)

    def _shift(self, ins, left):
        t = ins.mods[-1]
        b = type_info(t)[1]
        dt = numpy_type(t)
        d = self.dst(ins.args[0])
        a, c = self.src(ins.args[1], t), self.src(ins.args[2], "u32")

        def run(st, m):
            x, s = a(st), c(st)
            big = s >= b
            sc = np.minimum(s, b - 1).astype(dt)
            if left:
                y = np.where(big, dt(0), x << sc)
            else:
                y = x >> sc
                if type_info(t)[0] != "s":
                    y = np.where(big, dt(0), y)
            d(st, y, m)

        return run

    def op_shl(self, ins):
        return self._shift(ins, True)

    def op_shr(self, ins):
        return self._shift(ins, False)

    def op_shf(self, ins):
        left, wrap = "l" in ins.mods, "wrap" in ins.mods

        def f(lo, hi, s):
            s = (s & np.uint32(31)) if wrap else np.minimum(s, np.uint32(32))
            v = (hi.astype(np.uint64) << np.uint64(32)) | lo
            v = (v << s.astype(np.uint64)) >> np.uint64(32) if left else v >> s.astype(np.uint64)
            return (v & np.uint64(0xFFFFFFFF)).astype(np.uint32)

        return self._alu(ins, f, 3, "u32")

    def op_bfe(self, ins):
        t = ins.mods[-1]
        k, b = type_info(t)
        d = self.dst(ins.args[0])
        a, p, l = self.src(ins.args[1], t), self.src(ins.args[2], "u32"), self.src(ins.args[3], "u32")

        def run(st, m):
            x, pos, ln = (
                a(st).astype(np.uint64),
                (p(st) & np.uint32(255)).astype(np.uint64),
                (l(st) & np.uint32(255)).astype(np.uint64),
            )
            if k == "s":
                x = a(st).astype(np.int64).view(np.uint64)
            y = (x >> np.minimum(pos, np.uint64(63))) & ((np.uint64(1) << np.minimum(ln, np.uint64(63))) - np.uint64(1))
            if k == "s":
                sg = (y >> (ln - np.uint64(1))) & np.uint64(1)
                y = np.where((ln > 0) & (sg == 1), y | ~((np.uint64(1) << ln) - np.uint64(1)), y)
            d(st, y.astype(UNSIGNED[b]), m)

        return run

    def op_bfi(self, ins):
        b = type_info(ins.mods[-1])[1]
        t = f"u{b}"
        d = self.dst(ins.args[0])
        a, c = self.src(ins.args[1], t), self.src(ins.args[2], t)
        p, l = self.src(ins.args[3], "u32"), self.src(ins.args[4], "u32")

        def run(st, m):
            pos, ln = p(st).astype(np.uint64), l(st).astype(np.uint64)
            mk = ((np.uint64(1) << ln) - np.uint64(1)) << pos
            d(st, (((a(st).astype(np.uint64) << pos) & mk) | (c(st).astype(np.uint64) & ~mk)).astype(UNSIGNED[b]), m)

        return run

    def op_prmt(self, ins):
        def f(a, b, s):
            v = (b.astype(np.uint64) << np.uint64(32)) | a
            out = np.uint32(0)
            for i in range(4):
                q = (s >> np.uint32(4 * i)) & np.uint32(15)
                by = ((v >> ((q & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(np.uint32)
                by = np.where(q & np.uint32(8), np.where(by & np.uint32(128), np.uint32(255), np.uint32(0)), by)
                out = out | (by << np.uint32(8 * i))
            return out

        return self._alu(ins, f, 3, "u32")

    def op_lop3(self, ins):
        lut = int(ins.args[4], 0)

        def f(a, b, c):
            o = np.uint32(0)
            for i in range(8):
                if lut >> i & 1:
                    o = o | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
            return o if isinstance(o, np.ndarray) else np.full(1, o)

        return self._alu(ins, f, 3, "u32")

    def op_popc(self, ins):
        return self._alu(ins, lambda a: np.bitwise_count(a).astype(np.uint32), 1, f"u{type_info(ins.mods[-1])[1]}")

    def op_clz(self, ins):
        b = type_info(ins.mods[-1])[1]

        def f(a):
            r = np.full(a.shape, b, np.uint32)
            for i in range(b):
                r = np.where((a >> UNSIGNED[b](i)) & UNSIGNED[b](1), np.uint32(b - 1 - i), r)
            return r

        return self._alu(ins, f, 1, f"u{b}")

    def op_brev(self, ins):
        b = type_info(ins.mods[-1])[1]
        u = UNSIGNED[b]

        def f(a):
            r = np.zeros_like(a)
            for i in range(b):
                r |= ((a >> u(i)) & u(1)) << u(b - 1 - i)
            return r

        return self._alu(ins, f, 1, f"u{b}")
