"""Comparisons, selections, moves and conversions."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np

from ptx.operands import Operands
from ptx.values import UNSIGNED, flush, from_bfloat16, numpy_type, round_to_float32, to_bfloat16, type_info


class Conversions(Operands):
    """``op_name(instruction)`` returns the closure that runs it."""

    # comparisons and selections
    CMP: ClassVar = {
        "eq": np.equal,
        "ne": np.not_equal,
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "lo": np.less,
        "ls": np.less_equal,
        "hi": np.greater,
        "hs": np.greater_equal,
    }

    def op_setp(self, ins):
        t = ins.mods[-1]
        c = ins.mods[0]
        isf = type_info(t)[0] in ("f", "bf16")
        if isf and c not in self.CMP and c not in ("num", "nan"):
            b0 = self.CMP[c[:-1]]

            def f(a, b):
                return b0(a, b) | np.isnan(a) | np.isnan(b)
        elif c == "nan":

            def f(a, b):
                return np.isnan(a) | np.isnan(b)
        elif c == "num":

            def f(a, b):
                return ~(np.isnan(a) | np.isnan(b))
        elif c == "ne" and isf:

            def f(a, b):
                return (a != b) & ~np.isnan(a) & ~np.isnan(b)
        else:
            f = self.CMP[c]
        if "ftz" in ins.mods and self.opt["ftz"]:
            f0 = f

            def f(a, b):
                return f0(flush(a), flush(b))

        ds = [self.dst(x) for x in ins.args[0].split("|")]
        if type_info(t)[0] == "b":
            t = "u" + t[1:]
        if t == "bf16":
            g = [self.src(x, "b16") for x in ins.args[1:3]]
            a, b = (lambda st: from_bfloat16(g[0](st))), (lambda st: from_bfloat16(g[1](st)))
        else:
            a, b = self.src(ins.args[1], t), self.src(ins.args[2], t)
        comb = next((q for q in ins.mods[1:-1] if q in ("and", "or", "xor")), None)
        q = self.src(ins.args[3], "pred") if comb else None

        def run(st, m):
            r = f(a(st), b(st))
            nr = ~r
            if comb:
                z = q(st)
                op = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[comb]
                r, nr = op(r, z), op(nr, z)
            ds[0](st, r, m)
            if len(ds) > 1:
                ds[1](st, nr, m)

        return run

    def op_set(self, ins):
        dt, t = ins.mods[-2], ins.mods[-1]
        d = self.dst(ins.args[0])
        a, b = self.src(ins.args[1], t), self.src(ins.args[2], t)
        f = self.CMP[ins.mods[0]]
        one = np.float32(1) if dt == "f32" else UNSIGNED[type_info(dt)[1]]((1 << type_info(dt)[1]) - 1)
        return lambda st, m: d(st, np.where(f(a(st), b(st)), one, type(one)(0)), m)

    def op_selp(self, ins):
        t = f"b{type_info(ins.mods[-1])[1]}"
        d = self.dst(ins.args[0])
        s = self.src
        if type_info(ins.mods[-1])[0] == "f":
            a, b = s(ins.args[1], ins.mods[-1]), s(ins.args[2], ins.mods[-1])
        else:
            a, b = s(ins.args[1], t), s(ins.args[2], t)
        p = s(ins.args[3], "pred")
        return lambda st, m: d(st, np.where(p(st), a(st), b(st)), m)

    def op_slct(self, ins):
        t = f"b{type_info(ins.mods[-2])[1]}"
        d = self.dst(ins.args[0])
        a, b, c = self.src(ins.args[1], t), self.src(ins.args[2], t), self.src(ins.args[3], ins.mods[-1])
        return lambda st, m: d(st, np.where(c(st) >= 0, a(st), b(st)), m)

    # moves
    def op_mov(self, ins):
        t = ins.mods[-1]
        dtok, stok = ins.args
        if t == "pred":
            d, s = self.dst(dtok), self.src(stok, "pred")
            return lambda st, m: d(st, s(st), m)
        b = type_info(t)[1]
        if stok.startswith("{"):
            parts = [p.strip() for p in stok[1:-1].split(",")]
            pb = b // len(parts)
            ss = [self.src(p, f"b{pb}") for p in parts]
            d = self.dst(dtok)
            u = UNSIGNED[b]

            def pack(st, m):
                v = u(0)
                for i, s in enumerate(ss):
                    v = v | (s(st).astype(u) << u(i * pb))
                d(st, v, m)

            return pack
        if dtok.startswith("{"):
            parts = [p.strip() for p in dtok[1:-1].split(",")]
            pb = b // len(parts)
            ds = [self.dst(p) for p in parts]
            s = self.src(stok, f"b{b}")
            u = UNSIGNED[b]

            def unpack(st, m):
                v = s(st)
                for i, d in enumerate(ds):
                    d(st, (v >> u(i * pb)).astype(UNSIGNED[pb]), m)

            return unpack
        d = self.dst(dtok)
        s = self.src(stok, t if t[0] == "f" else f"b{b}")
        return lambda st, m: d(st, s(st), m)

    def op_cvta(self, ins):
        d, s = self.dst(ins.args[0]), self.src(ins.args[1], "b64")
        return lambda st, m: d(st, s(st), m)

    def op_createpolicy(self, ins):
        d = self.dst(ins.args[0])
        z = np.zeros(1, np.uint64)
        return lambda st, m: d(st, z, m)

    def op_cvt(self, ins):
        types = [q for q in ins.mods if re.fullmatch(r"[bsuf](8|16|32|64)|bf16|bf16x2|f16x2|tf32", q)]
        dt, t = types[-2], types[-1]
        rm = [q for q in ins.mods if q in ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna")]
        rm = rm[0] if rm else None
        sat, ftz, relu = (
            "sat" in ins.mods or "satfinite" in ins.mods,
            "ftz" in ins.mods and self.opt["ftz"],
            "relu" in ins.mods,
        )
        d = self.dst(ins.args[0])
        if dt in ("bf16x2", "f16x2"):
            a, b = self.src(ins.args[1], "f32"), self.src(ins.args[2], "f32")

            def cv(x):
                if relu:
                    x = np.maximum(x, 0)
                if rm == "rz" and dt == "bf16x2":
                    return (np.ascontiguousarray(x).view(np.uint32) >> np.uint32(16)).astype(np.uint32)
                return (
                    to_bfloat16(x) if dt == "bf16x2" else np.ascontiguousarray(x.astype(np.float16)).view(np.uint16)
                ).astype(np.uint32)

            return lambda st, m: d(st, (cv(a(st)) << np.uint32(16)) | cv(b(st)), m)
        if dt == "tf32":
            a = self.src(ins.args[1], "b32")

            def tf(u):
                if rm == "rn":
                    r = u + np.uint32(0xFFF) + ((u >> np.uint32(13)) & np.uint32(1))
                else:
                    r = u + np.uint32(0x1000)
                return np.where((u & np.uint32(0x7F800000)) == np.uint32(0x7F800000), u, r & np.uint32(0xFFFFE000))

            return lambda st, m: d(st, tf(a(st)), m)
        _sk, dk = type_info(t), type_info(dt)
        a = self.src(ins.args[1], "b16" if t == "bf16" else t)
        RI = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}

        def f(x):
            if t == "bf16":
                x = from_bfloat16(x)
            if ftz and x.dtype == np.float32:
                x = flush(x)
            xf = x.dtype.kind == "f"
            if xf and rm in RI:
                x = RI[rm](x)
            if dk[0] in "su":
                if xf:
                    info = np.iinfo(numpy_type(dt))
                    x = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
                    y = np.clip(x, float(info.min), float(info.max))
                    hi = y >= float(info.max)
                    y = np.where(hi, 0, y).astype(numpy_type(dt))
                    return np.where(hi, numpy_type(dt)(info.max), y)
                if sat:
                    info = np.iinfo(numpy_type(dt))
                    x = np.clip(x, max(info.min, np.iinfo(x.dtype).min), min(info.max, np.iinfo(x.dtype).max))
                return x.astype(numpy_type(dt))
            if dt == "bf16":
                return to_bfloat16(x.astype(np.float32))
            if dt == "f32" and rm in ("rz", "rm", "rp"):
                y = round_to_float32(x.astype(np.float64), rm)
            else:
                y = x.astype(numpy_type(dt))
            if sat:
                y = np.clip(y, 0, 1)
            return flush(y) if ftz else y

        # u8/s8 sources live in 16/32-bit registers: src() truncates to the type width
        return lambda st, m: d(st, f(a(st)), m)
