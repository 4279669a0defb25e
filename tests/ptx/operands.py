"""Operands and destinations of an instruction, as closures over the machine's state."""

from __future__ import annotations

import re

import numpy as np

from ptx.machine import SPECIAL, immediate
from ptx.values import (
    SIGNED,
    UNSIGNED,
    PTXUnsupported,
    flush,
    from_bfloat16,
    numpy_type,
    round_to_float32,
    to_bfloat16,
    type_info,
)


class Operands:
    """Translates the operands of one kernel into closures ``run(state, mask)``."""

    def __init__(self, K, globs, opt):
        self.K, self.opt, self.globs = K, opt, globs

    # sources -------------------------------------------------------------
    def src(self, tok, t):
        """closure st -> numpy array viewed as PTX type t."""
        tok = tok.strip()
        K = self.K
        if tok.startswith("!"):
            f = self.src(tok[1:], "pred")
            return lambda st: ~f(st)
        if tok in K.regs:
            rk = K.regs[tok]
            if rk == "pred":
                return lambda st: st.R[tok]
            rb = type_info(rk)[1]
            dt, b = numpy_type(t), type_info(t)[1]
            if b == rb:
                return lambda st: st.R[tok].view(dt)
            if b < rb:
                u = UNSIGNED[b]
                return lambda st: st.R[tok].astype(u).view(dt)
            u = UNSIGNED[b]
            return lambda st: st.R[tok].astype(u).view(dt)
        if tok.startswith("%"):
            nm = tok[1:]
            if nm in SPECIAL:
                f = SPECIAL[nm]
                dt = numpy_type(t)
                b = type_info(t)[1]
                return lambda st: (f(st) if f(st).dtype.itemsize * 8 == b else f(st).astype(UNSIGNED[b])).view(dt)
            raise PTXUnsupported("special register " + tok)
        if tok in K.shared or tok in K.local:
            v = immediate(str(K.shared.get(tok, K.local.get(tok))), t)
            return lambda _: v
        if tok in self.globs:
            dt = numpy_type(t)
            return lambda st: np.array([st.mem.sym[tok]], np.uint64).view(dt)
        if tok == "WARP_SZ":
            v = immediate("32", t)
            return lambda _: v
        m = re.fullmatch(r"([\w$]+)\+(\d+)", tok)
        if m:
            f = self.src(m.group(1), t)
            o = immediate(m.group(2), t)
            return lambda st: f(st) + o
        v = immediate(tok, t)
        return lambda _: v

    def addr(self, tok, space):
        tok = tok.strip()
        if tok.startswith("["):
            tok = tok[1:-1]
        m = re.fullmatch(r"\s*([%\w$@.]+)\s*(?:\+\s*(-?\w+))?\s*", tok)
        base, off = m.group(1), int(m.group(2) or "0", 0)
        w = "u64" if space == "global" else "u32"
        if base in self.K.regs:
            w = "u64" if type_info(self.K.regs[base])[1] == 64 else "u32"
        f = self.src(base, w)
        if off == 0:
            return f
        o = np.array([off & ((1 << (64 if w == "u64" else 32)) - 1)], UNSIGNED[64 if w == "u64" else 32])
        return lambda st: f(st) + o

    # destination ---------------------------------------------------------
    def dst(self, tok):
        """closure (st, value, mask) writing raw bits."""
        tok = tok.strip()
        if tok == "_":
            return lambda *_: None
        if tok not in self.K.regs:
            raise PTXUnsupported("destination " + tok)
        rk = self.K.regs[tok]
        u = np.bool_ if rk == "pred" else UNSIGNED[type_info(rk)[1]]
        isz = np.dtype(u).itemsize

        def w(st, v, m):
            if v.dtype != u:
                if v.dtype.itemsize == isz and u is not np.bool_:
                    v = v.view(u) if v.flags.c_contiguous else np.ascontiguousarray(v).view(u)
                elif v.dtype.kind == "f":
                    v = np.ascontiguousarray(v).view(UNSIGNED[v.dtype.itemsize * 8]).astype(u)
                elif v.dtype.kind == "i":  # sign extend into a wider register
                    v = v.astype(SIGNED[isz * 8]).view(u)
                else:
                    v = v.astype(u)
            if m is not None:
                old = st.R.get(tok)
                if old is None:
                    old = np.zeros(1, u)
                v = np.where(m, v, old)
            st.R[tok] = v

        return w

    # instruction ---------------------------------------------------------
    def build(self, ins):
        h = getattr(self, "op_" + ins.op, None)
        if h is None:
            raise PTXUnsupported(ins.text)
        body = h(ins)
        if ins.pred is None:
            return body
        p = self.src(ins.pred, "pred")
        neg = ins.neg

        def guarded(st, m):
            q = p(st)
            if neg:
                q = ~q
            if q.shape[0] == 1:
                if q[0]:
                    body(st, m)
                return
            mm = q if m is None else (q & m)
            if mm.all():
                body(st, None)
            elif mm.any():
                body(st, mm)

        return guarded

    def _alu(self, ins, fn, nsrc, t=None, dt=None):
        t = t or ins.mods[-1]
        d = self.dst(ins.args[0])
        s = [self.src(a, t) for a in ins.args[1 : 1 + nsrc]]
        if nsrc == 1:
            (a,) = s
            return lambda st, m: d(st, fn(a(st)), m)
        if nsrc == 2:
            a, b = s
            return lambda st, m: d(st, fn(a(st), b(st)), m)
        a, b, c = s
        return lambda st, m: d(st, fn(a(st), b(st), c(st)), m)

    def _fl(self, ins, f64, f32, n):
        """float op: f32 = native float32 form (rn), f64 = form used for directed rounding."""
        t = ins.mods[-1]
        ftz = "ftz" in ins.mods and self.opt["ftz"]
        mode = next((q for q in ins.mods if q in ("rz", "rm", "rp")), "rn")
        if t in ("bf16", "bf16x2", "f16", "f16x2", "f32x2"):
            return self._packed(ins, f32, n, t)
        if t == "f32" and mode != "rn":

            def base(*a):
                return round_to_float32(f64(*[x.astype(np.float64) for x in a]), mode)
        else:
            base = f32
        if "sat" in ins.mods:
            b0 = base

            def base(*a):
                return np.clip(np.nan_to_num(b0(*a), nan=0.0), 0, 1).astype(numpy_type(t))

        if ftz and t == "f32":
            return self._alu(ins, lambda *a: flush(base(*[flush(x) for x in a])), n, t)
        return self._alu(ins, base, n, t)

    def _packed(self, ins, fn, n, t):
        d = self.dst(ins.args[0])
        relu = "relu" in ins.mods
        b = type_info(t)[1]
        s = [self.src(a, f"b{b}") for a in ins.args[1 : 1 + n]]

        def up(u):
            if t.startswith("bf16"):
                return from_bfloat16(np.ascontiguousarray(u).view(np.uint16))
            return np.ascontiguousarray(u).view(np.float16 if t.startswith("f16") else np.float32)

        def run(st, m):
            a = [x(st) for x in s]
            L = max(x.shape[0] for x in a)
            a = [up(np.broadcast_to(x, (L,))) for x in a]
            y = fn(*a)
            if relu:
                y = np.maximum(y, 0)
            y = to_bfloat16(y) if t.startswith("bf16") else y
            d(st, np.ascontiguousarray(y).view(UNSIGNED[b]), m)

        return run
