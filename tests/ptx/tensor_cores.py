"""Matrix instructions of three generations: mma.sync with its fragments, wgmma, tcgen05 with tensor memory."""

from __future__ import annotations

import re

import numpy as np

from ptx.operands import Operands
from ptx.values import PTXFault, PTXUnsupported, from_bfloat16


class TensorCores(Operands):
    """``op_name(instruction)`` returns the closure that runs it."""

    def op_ldmatrix(self, ins):
        int(next(q for q in ins.mods if re.fullmatch(r"x[124]", q))[1:])
        tr = "trans" in ins.mods
        ds = [self.dst(q.strip()) for q in ins.args[0].strip("{} ").split(",")]
        ad = self.addr(ins.args[1], "shared")
        what = ins.text

        def run(st, m):
            st.converged(m, what)
            a = st.full(ad(st)).astype(np.int64).reshape(-1, 32)
            a.shape[0]
            blk = st.block_of_lane.reshape(-1, 32)[:, :1]
            lane = np.arange(32)
            wm = None if m is None else m.reshape(-1, 32)[:, 0]
            flat = st.smem.view(np.uint16)
            for i, d in enumerate(ds):
                rows = a[:, 8 * i : 8 * i + 8]  # (nw, 8) row addresses
                chk = rows if wm is None else rows[wm]
                if chk.size and ((chk & 15).any() or chk.min() < 0 or chk.max() + 16 > st.smem_size):
                    raise PTXFault(what + ": ldmatrix row address misaligned or out of shared memory")
                rows = rows if wm is None else np.where(wm[:, None], rows, 0)
                e = (blk * st.smem_size + rows) >> 1
                mat = flat[e[:, :, None] + np.arange(8)]  # (nw, 8, 8) b16
                if tr:
                    mat = mat.transpose(0, 2, 1)
                lo = mat[:, lane // 4, 2 * (lane % 4)].astype(np.uint32)
                hi = mat[:, lane // 4, 2 * (lane % 4) + 1].astype(np.uint32)
                d(st, (lo | (hi << np.uint32(16))).reshape(-1), m)

        return run

    def op_stmatrix(self, ins):
        tr = "trans" in ins.mods
        ad = self.addr(ins.args[0], "shared")
        ss = [self.src(q.strip(), "b32") for q in ins.args[1].strip("{} ").split(",")]
        what = ins.text

        def run(st, m):
            st.converged(m, what)
            a = st.full(ad(st)).astype(np.int64).reshape(-1, 32)
            blk = st.block_of_lane.reshape(-1, 32)[:, :1]
            wm = np.ones(a.shape[0], bool) if m is None else m.reshape(-1, 32)[:, 0]
            lane = np.arange(32)
            flat = st.smem.view(np.uint16)
            for i, s in enumerate(ss):
                v = st.full(s(st)).reshape(-1, 32)
                mat = np.zeros((a.shape[0], 8, 8), np.uint16)
                mat[:, lane // 4, 2 * (lane % 4)] = v.astype(np.uint16)
                mat[:, lane // 4, 2 * (lane % 4) + 1] = (v >> np.uint32(16)).astype(np.uint16)
                if tr:
                    mat = mat.transpose(0, 2, 1)
                e = ((blk * st.smem_size + a[:, 8 * i : 8 * i + 8]) >> 1)[wm]
                flat[e[:, :, None] + np.arange(8)] = mat[wm]

        return run

    def op_mma(self, ins):
        shape = next(q for q in ins.mods if re.fullmatch(r"m\d+n\d+k\d+", q))
        M, N, Kd = map(int, re.fullmatch(r"m(\d+)n(\d+)k(\d+)", shape).groups())
        tys = [q for q in ins.mods if re.fullmatch(r"f32|f16|bf16|tf32|f64|s32|s8|u8", q)]
        dt, at, _bt, _ct = tys
        if dt != "f32" or at not in ("tf32", "bf16", "f16") or M != 16 or N != 8:
            raise PTXUnsupported(ins.text)
        vs = [[q.strip() for q in a.strip("{} ").split(",")] for a in ins.args]
        ds = [self.dst(q) for q in vs[0]]
        A = [self.src(q, "b32") for q in vs[1]]
        B = [self.src(q, "b32") for q in vs[2]]
        C = [self.src(q, "f32") for q in vs[3]]
        lane = np.arange(32)
        g, t4 = lane // 4, lane % 4
        what = ins.text

        def unpack(st, regs):
            x = np.stack([st.full(r(st)).reshape(-1, 32) for r in regs], -1)  # (nw,32,nreg) u32
            if at == "tf32":
                return (x & np.uint32(0xFFFFE000)).view(np.float32)[..., None]  # hardware drops the low 13 bits
            h = np.ascontiguousarray(x).view(np.uint16).reshape(*x.shape, 2)
            return from_bfloat16(h) if at == "bf16" else h.view(np.float16).astype(np.float32)

        w = 1 if at == "tf32" else 2  # elements per register

        def run(st, m):
            st.converged(m, what)
            a, b = unpack(st, A), unpack(st, B)
            nw = a.shape[0]
            Am, Bm = np.zeros((nw, 16, Kd), np.float32), np.zeros((nw, Kd, 8), np.float32)
            for i in range(a.shape[2]):  # a0:(g,k) a1:(g+8,k) a2:(g,k+half) a3:(g+8,k+half)
                for e in range(w):
                    Am[:, g + 8 * (i & 1), w * t4 + e + 4 * w * (i >> 1)] = a[:, :, i, e]
            for i in range(b.shape[2]):
                for e in range(w):
                    Bm[:, w * t4 + e + 4 * w * i, g] = b[:, :, i, e]
            D = np.matmul(Am, Bm)
            for i, d in enumerate(ds):
                r, c = g + 8 * (i >> 1), 2 * t4 + (i & 1)
                d(st, (D[:, r, c] + st.full(C[i](st)).reshape(-1, 32)).astype(np.float32).reshape(-1), m)

        return run

    def op_wgmma(self, ins):
        """Hopper warpgroup mma, operands from shared-memory descriptors (or A from registers).
        Executed at issue: it does not check the fence/commit/wait discipline."""
        if "mma_async" not in ins.mods:
            return lambda *_: None  # fence / commit_group / wait_group
        _M, N, Kd = map(
            int,
            re.fullmatch(r"m(\d+)n(\d+)k(\d+)", next(q for q in ins.mods if re.fullmatch(r"m\d+n\d+k\d+", q))).groups(),
        )
        dt, at = [q for q in ins.mods if re.fullmatch(r"f32|f16|bf16|tf32", q)][:2]
        if dt != "f32":
            raise PTXUnsupported(ins.text)
        es = 4 if at == "tf32" else 2
        dn = [q.strip() for q in ins.args[0].strip("{} ").split(",")]
        ds, cs = [self.dst(q) for q in dn], [self.src(q, "f32") for q in dn]
        areg = ins.args[1].startswith("{")
        A = (
            [self.src(q.strip(), "b32") for q in ins.args[1].strip("{} ").split(",")]
            if areg
            else self.src(ins.args[1], "b64")
        )
        Bd = self.src(ins.args[2], "b64")
        sd = self.src(ins.args[3], "pred")
        im = [int(q, 0) for q in ins.args[4:]]
        sa, sb = ([*im, 1, 1])[:2]
        tra, trb = 0, 0
        if es == 2:
            if areg:
                trb = im[2] if len(im) > 2 else 0
            else:
                tra, trb = ([*im, 0, 0])[2:4]
        what = ins.text[:60]
        lane = np.arange(32)
        g, t4 = lane // 4, lane % 4

        def fetch(st, desc, rows, cols, mn_major, wm):
            """desc (nwg,) -> (nwg, rows, cols) float32; rows = M or N index, cols = K index."""
            d = desc.astype(np.int64)
            start, lbo, sbo, sw = (d & 0x3FFF) << 4, ((d >> 16) & 0x3FFF) << 4, ((d >> 32) & 0x3FFF) << 4, (d >> 62) & 3
            if np.unique(sw).size > 1:
                raise PTXUnsupported("mixed swizzle")
            sw = int(sw[0])
            width = {0: 16, 1: 128, 2: 64, 3: 32}[sw]
            r, c = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")

            def e(x):
                return x[:, None, None]

            if not mn_major:
                kb = c * es
                a = e(start) + (r % 8) * width + (r // 8) * e(sbo) + (kb % width) + (kb // width) * e(lbo)
            else:
                per = width // es
                a = e(start) + (r % per) * es + (r // per) * e(lbo) + (c % 8) * width + (c // 8) * e(sbo)
            bits = {0: 0, 1: 7, 2: 3, 3: 1}[sw]
            a = a ^ (((a >> 7) & bits) << 4)
            if a[wm].size and a[wm].max() + es > st.smem_size:
                raise PTXFault(what + ": descriptor reaches outside shared memory")
            a = np.where(wm[:, None, None], a, 0)
            a = a + e(st.block_of_lane.reshape(-1, 128)[:, 0] * st.smem_size)
            if es == 4:
                return (st.smem.view(np.uint32)[a >> 2] & np.uint32(0xFFFFE000)).view(np.float32)
            h = st.smem.view(np.uint16)[a >> 1]
            return from_bfloat16(h) if at == "bf16" else h.view(np.float16).astype(np.float32)

        def run(st, m):
            st.converged(m, what)
            nwg = st.n // 128
            wm = np.ones(nwg, bool) if m is None else m.reshape(-1, 128)[:, 0]
            Bm = fetch(st, st.full(Bd(st)).reshape(-1, 128)[:, 0], N, Kd, trb, wm)
            if areg:
                x = np.stack([st.full(q(st)).reshape(nwg, 4, 32) for q in A], -1)
                if at == "tf32":
                    f = (x & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
                    w = 1
                else:
                    h = np.ascontiguousarray(x).view(np.uint16).reshape(*x.shape, 2)
                    w = 2
                    f = from_bfloat16(h) if at == "bf16" else h.view(np.float16).astype(np.float32)
                Am = np.zeros((nwg, 4, 16, Kd), np.float32)
                for i in range(4):
                    for q in range(w):
                        Am[:, :, g + 8 * (i & 1), w * t4 + q + 4 * w * (i >> 1)] = f[:, :, :, i, q]
                Am = Am.reshape(nwg, 64, Kd)
            else:
                Am = fetch(st, st.full(A(st)).reshape(-1, 128)[:, 0], 64, Kd, tra, wm)
            D = np.matmul(Am * np.float32(sa), (Bm * np.float32(sb)).transpose(0, 2, 1)).reshape(nwg, 4, 16, N)
            keep = None if sd is None else sd(st)
            for i, d in enumerate(ds):
                v = D[:, :, g + 8 * ((i >> 1) & 1), 8 * (i >> 2) + 2 * t4 + (i & 1)].reshape(-1)
                c = cs[i](st)
                d(st, (v + (c if keep is None else np.where(keep, c, np.float32(0)))).astype(np.float32), m)

        return run

    # Blackwell: tensor memory, tcgen05.mma from shared-memory descriptors, mbarriers
    def op_mbarrier(self, ins):
        kind = ins.mods[0]
        what = ins.text
        if kind in ("init", "inval"):
            ad = self.addr(ins.args[0], "shared")
            n = self.src(ins.args[1], "u32") if kind == "init" else None

            def init(st, m):
                a = st.full(ad(st))
                for l in st.lane_ids if m is None else np.flatnonzero(m):
                    key = (int(st.block_of_lane[l]), int(a[l]))
                    if n is None:
                        st.mbar.pop(key, None)
                    else:
                        c = int(st.full(n(st))[l])
                        st.mbar[key] = [0, c, c]

            return init
        if kind == "arrive":
            ad = self.addr(ins.args[-1], "shared")

            def arrive(st, m):
                a = st.full(ad(st))
                for l in st.lane_ids if m is None else np.flatnonzero(m):
                    st.mbar_arrive(int(st.block_of_lane[l]), int(a[l]), what)

            return arrive
        if kind in ("try_wait", "test_wait") and "parity" in ins.mods:
            d = self.dst(ins.args[0])
            ad = self.addr(ins.args[1], "shared")
            par = self.src(ins.args[2], "u32")

            def wait(st, m):
                a, p = st.full(ad(st)), st.full(par(st))
                r = np.zeros(st.n, bool)
                for l in st.lane_ids if m is None else np.flatnonzero(m):
                    b = st.mbar.get((int(st.block_of_lane[l]), int(a[l])))
                    if b is None:
                        raise PTXFault(what + ": wait on an mbarrier that was never initialised")
                    r[l] = (b[0] & 1) != (int(p[l]) & 1)
                d(st, r, m)

            return wait
        raise PTXUnsupported(ins.text)

    def op_tcgen05(self, ins):
        k = ins.mods[0]
        what = ins.text[:70]
        if k.startswith(("wait", "relinquish", "dealloc", "fence")):
            return lambda *_: None
        if k == "alloc":
            ad, nc = self.addr(ins.args[0], "shared"), self.src(ins.args[1], "u32")

            def alloc(st, m):
                a, c = st.full(ad(st)), st.full(nc(st))
                sm = st.smem.view(np.uint32)
                lanes = st.lane_ids if m is None else np.flatnonzero(m)
                for b in np.unique(st.block_of_lane[lanes]):
                    l = lanes[st.block_of_lane[lanes] == b][0]
                    sm[(b * st.smem_size + int(a[l])) >> 2] = st.tmem_next[b]
                    st.tmem_next[b] += int(c[l])
                    if st.tmem_next[b] > 512:
                        raise PTXFault(what + ": tensor memory exhausted")

            return alloc
        if k in ("ld", "st"):
            shp = (
                next(q for q in ins.mods if re.fullmatch(r"16x32bx2|32x32b", q))
                if any(q in ("16x32bx2", "32x32b") for q in ins.mods)
                else None
            )
            if shp is None or "pack::16b" in ins.mods or "unpack::16b" in ins.mods:
                raise PTXUnsupported(ins.text)
            ai, ri = (1, 0) if k == "ld" else (0, len(ins.args) - 1)
            ad = self.addr(ins.args[ai], "tmem")
            regs = [q.strip() for q in ins.args[ri].strip("{} ").split(",")]
            half = int(next(a for a in ins.args if re.fullmatch(r"\d+", a.strip()))) if shp == "16x32bx2" else 0
            io = [self.dst(q) if k == "ld" else self.src(q, "b32") for q in regs]

            def ldst(st, m):
                st.converged(m, what)
                a = st.full(ad(st)).astype(np.int64)
                ln, col = a >> 16, a & 0xFFFF
                t = st.laneid.astype(np.int64)
                if shp == "32x32b":
                    row = ln + t
                else:
                    row = ln + (t & 15)
                    col = col + np.where(t >= 16, half, 0)
                if m is None:
                    sel = slice(None)
                else:
                    sel = np.flatnonzero(m)
                if (row[sel] // 32 != st.warpid.astype(np.int64)[sel] % 4).any():
                    raise PTXFault(what + ": warp accesses tensor-memory lanes of another sub-partition")
                for i, r in enumerate(io):
                    if k == "ld":
                        v = np.zeros(st.n, np.uint32)
                        v[sel] = st.tmem[st.block_of_lane[sel], row[sel], col[sel] + i]
                        r(st, v, m)
                    else:
                        st.tmem[st.block_of_lane[sel], row[sel], col[sel] + i] = st.full(r(st))[sel]

            return ldst
        if k == "commit":
            ad = self.addr(ins.args[0], "shared")

            def commit(st, m):
                a = st.full(ad(st))
                for l in st.lane_ids if m is None else np.flatnonzero(m):
                    st.mbar_arrive(int(st.block_of_lane[l]), int(a[l]), what)

            return commit
        if k != "mma" or "cta_group::1" not in ins.mods:
            raise PTXUnsupported(ins.text)
        atm = ins.args[1].startswith("[")
        es = {"kind::tf32": 4, "kind::f16": 2}.get(next(q for q in ins.mods if q.startswith("kind")))
        if es is None:
            raise PTXUnsupported(ins.text)
        da = self.addr(ins.args[0], "tmem")
        Bd = self.src(ins.args[2], "b64")
        A = self.addr(ins.args[1], "tmem") if atm else self.src(ins.args[1], "b64")
        ides, en = self.src(ins.args[3], "u32"), self.src(ins.args[4], "pred")

        def fetch(st, blk, d, rows, cols, mn, fmt):
            start, lbo, sbo, sw = (d & 0x3FFF) << 4, ((d >> 16) & 0x3FFF) << 4, ((d >> 32) & 0x3FFF) << 4, (d >> 61) & 7
            width = {0: 16, 2: 128, 4: 64, 6: 32}[sw]
            bits = {0: 0, 2: 7, 4: 3, 6: 1}[sw]
            r, c = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
            if not mn:
                kb = c * es
                a = start + (r % 8) * width + (r // 8) * sbo + (kb % width) + (kb // width) * lbo
            else:
                per = width // es
                a = start + (r % per) * es + (r // per) * lbo + (c % 8) * width + (c // 8) * sbo
            a = a ^ (((a >> 7) & bits) << 4)
            if a.max() + es > st.smem_size:
                raise PTXFault(what + ": descriptor reaches outside shared memory")
            a = a + blk * st.smem_size
            if es == 4:
                return (st.smem.view(np.uint32)[a >> 2] & np.uint32(0xFFFFE000)).view(np.float32)
            h = st.smem.view(np.uint16)[a >> 1]
            return from_bfloat16(h) if fmt == 1 else h.view(np.float16).astype(np.float32)

        def mma(st, m):
            for l in st.lane_ids if m is None else np.flatnonzero(m):

                def g(f, l=l):
                    return int(st.full(f(st))[l])

                b = int(st.block_of_lane[l])
                i = g(ides)
                N, M = ((i >> 17) & 63) << 3, ((i >> 24) & 31) << 4
                K = 32 // es
                if atm:  # A in tensor memory: one row per lane, 32-bit columns
                    r = np.arange(M)
                    ta = g(A)
                    w = st.tmem[b][
                        ((ta >> 16) + (r if M == 128 else (r // 16) * 32 + r % 16))[:, None],
                        (ta & 0xFFFF) + np.arange(8),
                    ]
                    if es == 4:
                        Am = (w & np.uint32(0xFFFFE000)).view(np.float32)
                    else:
                        h = np.ascontiguousarray(w).view(np.uint16)
                        Am = from_bfloat16(h) if (i >> 7) & 7 == 1 else h.view(np.float16).astype(np.float32)
                else:
                    Am = fetch(st, b, g(A), M, K, (i >> 15) & 1, (i >> 7) & 7)
                Bm = fetch(st, b, g(Bd), N, K, (i >> 16) & 1, (i >> 10) & 7)
                D = Am @ Bm.T
                d = g(da)
                col = d & 0xFFFF
                r = np.arange(M)
                row = (d >> 16) + (r if M == 128 else (r // 16) * 32 + r % 16)
                t = st.tmem[b]
                v = t[row[:, None], col + np.arange(N)].view(np.float32)
                t[row[:, None], col + np.arange(N)] = ((v + D) if g(en) else D).astype(np.float32).view(np.uint32)

        return mma
