"""Loads, stores, atomics and asynchronous copies."""

from __future__ import annotations

import re

import numpy as np

from ptx.machine import memory_ref
from ptx.operands import Operands
from ptx.values import UNSIGNED, PTXFault, PTXUnsupported, numpy_type, type_info


class MemoryAccess(Operands):
    """``op_name(instruction)`` returns the closure that runs it."""

    # memory
    def _space(self, ins):
        for q in ins.mods:
            s = q.split("::")[0]
            if s in ("global", "shared", "local", "param", "const"):
                return "global" if s == "const" else s
        return "global"

    def op_ld(self, ins):
        t = ins.mods[-1]
        b = type_info(t)[1]
        sp = self._space(ins)
        toks = [q.strip() for q in ins.args[0].strip("{} ").split(",")]
        ds = [self.dst(q) for q in toks]
        dt = numpy_type(t)
        if sp == "param":
            m_ = re.fullmatch(r"\[\s*([\w$]+)\s*(?:\+\s*(\d+))?\s*\]", ins.args[1])
            nm, off = m_.group(1), int(m_.group(2) or 0)

            def ldp(st, m):
                raw = st.params[nm]
                for i, d in enumerate(ds):
                    o = off + i * b // 8
                    d(st, np.frombuffer(raw[o : o + b // 8], dt).copy(), m)

            return ldp
        ad = self.addr(ins.args[1], sp)
        what = ins.text
        st_ = b // 8

        def run(st, m):
            a0 = ad(st)
            if a0.shape[0] > 1 and len(ds) > 1:
                al = a0 if m is None else a0[m]
                if (al & a0.dtype.type(st_ * len(ds) - 1)).any():
                    raise PTXFault(what + ": vector access not aligned to its full width")
            for i, d in enumerate(ds):
                a = a0 if i == 0 else a0 + a0.dtype.type(i * st_)
                refs = memory_ref(st, sp, a, b, m, what)
                if len(refs) == 1 and refs[0][2] is None:
                    d(st, refs[0][0][refs[0][1]].view(dt), None)
                else:
                    v = np.zeros(st.n, UNSIGNED[b])
                    for buf, ix, ln in refs:
                        if ln is None:
                            v[:] = buf[ix]
                        else:
                            v[ln] = buf[ix]
                    d(st, v.view(dt), m)

        return run

    op_ldu = op_ld

    def op_st(self, ins):
        t = ins.mods[-1]
        b = type_info(t)[1]
        sp = self._space(ins)
        ad = self.addr(ins.args[0], sp)
        what = ins.text
        ss = [
            self.src(q.strip(), f"b{b}" if type_info(t)[0] != "f" else t) for q in ins.args[1].strip("{} ").split(",")
        ]
        st_ = b // 8
        u = UNSIGNED[b]

        def run(st, m):
            a0 = ad(st)
            for i, s in enumerate(ss):
                a = a0 if i == 0 else a0 + a0.dtype.type(i * st_)
                v = np.ascontiguousarray(s(st)).view(u)
                for buf, ix, ln in memory_ref(st, sp, a, b, m, what):
                    vv = v if (ln is None or v.shape[0] == 1) else v[ln]
                    buf[ix] = vv if vv.shape[0] > 1 or ix.shape[0] == 1 else np.broadcast_to(vv, ix.shape)

        return run

    def _atomic(self, ins, ret):
        sp = self._space(ins)
        t = ins.mods[-1]
        if t == "noftz":
            t = ins.mods[-2]
        op = next(q for q in ins.mods if q in ("add", "min", "max", "exch", "cas", "and", "or", "xor", "inc", "dec"))
        args = ins.args[1:] if ret else ins.args
        dd = self.dst(ins.args[0]) if ret and not ins.args[0].startswith("{") else None
        ad = self.addr(args[0], sp)
        what = ins.text
        k, b = type_info(t)
        seed = self.opt["atomic_rng"]
        vec = args[1].startswith("{")
        toks = [q.strip() for q in args[1].strip("{} ").split(",")]
        if vec:
            dds = [self.dst(q.strip()) for q in ins.args[0].strip("{} ").split(",")] if ret else [None] * len(toks)
        else:
            dds = [dd]
        vals = [self.src(q, t if k in "fsu" else f"b{b}") for q in toks]
        cmpv = None
        if op == "cas":
            cmpv, vals = vals[0], [self.src(args[2], f"b{b}")]
        dt = numpy_type(t)
        used = ret and any(self.K.uses.get(q.strip(), 0) > 0 for q in ins.args[0].strip("{} ").split(","))

        def one(st, a, val, d, m):
            v = np.ascontiguousarray(st.full(val(st)))
            old = np.zeros(st.n, UNSIGNED[b])
            if k in ("bf16x2", "f16x2", "bf16") or (k == "f" and b == 16):
                raise PTXUnsupported(what)
            uni = a.shape[0] == 1
            for buf, ix, ln in memory_ref(st, sp, st.full(a) if uni else a, b, m, what):
                ix = np.broadcast_to(ix, (st.n,)) if ln is None and ix.shape[0] != st.n else ix
                lanes = np.arange(st.n) if ln is None else ln
                bv = buf.view(dt)
                o = np.arange(lanes.size) if seed is None else seed.permutation(lanes.size)
                ixo, lo = ix[o], lanes[o]
                vo = v[lo]
                if not used and op in ("add", "min", "max", "and", "or", "xor"):
                    {
                        "add": np.add,
                        "min": np.minimum,
                        "max": np.maximum,
                        "and": np.bitwise_and,
                        "or": np.bitwise_or,
                        "xor": np.bitwise_xor,
                    }[op].at(bv, ixo, vo)
                    continue
                cv = None if cmpv is None else st.full(cmpv(st))[lo]
                for q in range(lo.size):
                    e = bv[ixo[q]]
                    old[lo[q]] = buf[ixo[q]]
                    if op == "add":
                        bv[ixo[q]] = e + vo[q]
                    elif op == "min":
                        bv[ixo[q]] = min(e, vo[q])
                    elif op == "max":
                        bv[ixo[q]] = max(e, vo[q])
                    elif op == "exch":
                        bv[ixo[q]] = vo[q]
                    elif op == "and":
                        bv[ixo[q]] = e & vo[q]
                    elif op == "or":
                        bv[ixo[q]] = e | vo[q]
                    elif op == "xor":
                        bv[ixo[q]] = e ^ vo[q]
                    elif op == "inc":
                        bv[ixo[q]] = 0 if e >= vo[q] else e + 1
                    elif op == "dec":
                        bv[ixo[q]] = vo[q] if e == 0 or e > vo[q] else e - 1
                    elif op == "cas" and buf[ixo[q]] == cv[q]:
                        buf[ixo[q]] = vo[q]
            if d is not None:
                d(st, old.view(dt), m)

        def run(st, m):
            a0 = ad(st)
            for i, (val, d) in enumerate(zip(vals, dds)):
                one(st, a0 if i == 0 else a0 + a0.dtype.type(i * b // 8), val, d, m)

        return run

    def op_atom(self, ins):
        return self._atomic(ins, True)

    def op_red(self, ins):
        if "async" in ins.mods:
            raise PTXUnsupported(ins.text)
        return self._atomic(ins, False)

    # asynchronous copies
    def op_cp(self, ins):
        if ins.mods[:1] != ["async"] or "bulk" in ins.mods:
            raise PTXUnsupported(ins.text)
        if "commit_group" in ins.mods:

            def commit(st, m):
                st.cp_commit = st.cp_commit + (1 if m is None else m.astype(np.int64))

            return commit
        if "wait_group" in ins.mods or "wait_all" in ins.mods:
            n = int(ins.args[0], 0) if "wait_group" in ins.mods else -1
            return lambda st, m: st.cp_wait(n, m)
        dst, src = self.addr(ins.args[0], "shared"), self.addr(ins.args[1], "global")
        size = int(ins.args[2], 0)
        ssz = self.src(ins.args[3], "u32") if len(ins.args) > 3 else None
        what = ins.text

        def run(st, m):
            a, da = st.full(src(st)), st.full(dst(st))
            n = None if ssz is None else st.full(ssz(st))
            words = []
            for i in range(size // 4):
                mm = m
                if n is not None:
                    live = n > 4 * i
                    mm = live if m is None else (m & live)
                v = np.zeros(st.n, np.uint32)
                for buf, ix, ln in memory_ref(
                    st, "global", a + np.uint64(4 * i), 32, None if mm is None or mm.all() else mm, what
                ):
                    if ln is None:
                        v[:] = buf[ix]
                    else:
                        v[ln] = buf[ix]
                words.append(v)
            lanes = st.lane_ids if m is None else np.flatnonzero(m)
            st.cp_pending.append(
                (lanes, st.cp_commit[lanes], da[lanes].astype(np.int64), [w[lanes] for w in words], what)
            )

        return run
