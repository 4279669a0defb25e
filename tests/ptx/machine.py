"""The state that instructions act on: registers, memory, and the operands that name them."""

from __future__ import annotations

import re

import numpy as np

from ptx.values import UNSIGNED, WINDOW_BITS, PTXFault, numpy_type, type_info


# ----------------------------------------------------------------------------- machine state
class Regs(dict):
    """Registers; reading one that was never written gives a recognisable poison value."""

    def __init__(self, decl):
        super().__init__()
        self.decl = decl
        self.undef = set()

    def __missing__(self, k):
        t = self.decl[k]
        self.undef.add(k)
        v = (
            np.zeros(1, bool)
            if t == "pred"
            else np.array([0xDEADBEEFDEADBEEF & ((1 << type_info(t)[1]) - 1)], UNSIGNED[type_info(t)[1]])
        )
        return v


class State:
    """One batch of thread blocks."""

    def __init__(self, K, mem, nlanes):
        self.R, self.K, self.mem, self.n = Regs(K.regs), K, mem, nlanes
        self.cc = np.zeros(1, np.uint64)

    def full(self, a):
        return a if a.shape[0] == self.n else np.broadcast_to(a, (self.n,))

    def mask(self, m, p=None):
        if p is None:
            return m
        if p.shape[0] == 1:
            if p[0]:
                return m
            return np.zeros(self.n, bool)
        return p if m is None else (m & p)


def memory_ref(st, space, addr, bits, m, what):
    """-> list of (flat unsigned view, element index, lane selector)."""
    nb = bits // 8
    sh = nb.bit_length() - 1
    if space in ("shared", "local"):
        size = st.smem_size if space == "shared" else st.lmem_size
        arr = st.smem if space == "shared" else st.lmem
        a = st.full(addr).astype(np.int64)
        lanes = None if m is None else np.flatnonzero(m)
        unit = st.block_of_lane if space == "shared" else st.lane_ids
        if lanes is not None:
            a, unit = a[lanes], unit[lanes]
        if a.size and (a.min() < 0 or a.max() + nb > size):
            raise PTXFault(f"{what}: {space} address {int(a.min())}..{int(a.max())} outside {size} bytes")
        if (a & (nb - 1)).any():
            raise PTXFault(f"{what}: misaligned {space} access")
        return [(arr.view(UNSIGNED[bits]), (unit * size + a) >> sh, lanes)]
    a = addr
    lanes = None if m is None else np.flatnonzero(m)
    if lanes is not None:
        a = st.full(a)[lanes]
    if a.size == 0:
        return []
    bid = (a >> np.uint64(WINDOW_BITS)).astype(np.int64)
    out = []
    b0 = int(bid[0])
    same = bool((bid == b0).all())
    for b in [b0] if same else np.unique(bid):
        sel = None if same else np.flatnonzero(bid == b)
        aa = a if same else a[sel]
        off = (aa & np.uint64((1 << WINDOW_BITS) - 1)).astype(np.int64)
        buf = st.mem.bufs.get(int(b))
        hi = int(off.max())
        if buf is None or hi + nb > buf.size:
            l = int(np.argmax(off))
            ln = l if sel is None else sel[l]
            ln = ln if lanes is None else lanes[ln]
            nm = (
                st.mem.names.get(int(b), "null/unknown pointer")
                if buf is not None
                else f"unmapped (address {int(aa[l]):#x})"
            )
            raise PTXFault(
                f"{what}: {nm}: byte offset {hi} + {nb} > {0 if buf is None else buf.size} "
                f"(block {int(st.block_ids[st.block_of_lane[ln]])}, thread {int(st.tid[ln])})"
            )
        if (off & (nb - 1)).any():
            raise PTXFault(f"{what}: misaligned global access to {st.mem.names.get(int(b))}")
        lsel = lanes if same else (sel if lanes is None else lanes[sel])
        out.append((buf[: buf.size // nb * nb].view(UNSIGNED[bits]), off >> sh, lsel))
    return out


class Memory:
    def __init__(self):
        self.bufs, self.names, self.sym, self.keep = {}, {}, {}, []

    def add(self, a, name):
        b = len(self.bufs) + 1
        flat = a.reshape(-1).view(np.uint8)
        self.bufs[b] = flat
        self.names[b] = name
        return b << WINDOW_BITS


# ----------------------------------------------------------------------------- operand access
def immediate(tok, t):
    k, b = type_info(t)
    if k == "p":
        return np.array([bool(int(tok, 0))])
    if tok[:2] in ("0f", "0F"):
        v = np.array([int(tok[2:], 16)], np.uint32).view(np.float32)
        return v if (k, b) == ("f", 32) or b != 64 else v.astype(np.float64)
    if tok[:2] in ("0d", "0D"):
        return np.array([int(tok[2:], 16)], np.uint64).view(np.float64)
    if re.fullmatch(r"-?\d+\.\d+(e[-+]?\d+)?", tok):
        return np.array([float(tok)], numpy_type(t))
    v = int(tok.rstrip("Uu"), 0) & ((1 << b) - 1)
    return np.array([v], UNSIGNED[b]).view(numpy_type(t))


SPECIAL = {
    "tid.x": lambda s: s.tid32,
    "ctaid.x": lambda s: s.cta[0],
    "ctaid.y": lambda s: s.cta[1],
    "ctaid.z": lambda s: s.cta[2],
    "ntid.x": lambda s: s.ntid,
    "nctaid.x": lambda s: s.grid[0],
    "nctaid.y": lambda s: s.grid[1],
    "nctaid.z": lambda s: s.grid[2],
    "laneid": lambda s: s.laneid,
    "warpid": lambda s: s.warpid,
    "tid.y": lambda s: s.zero,
    "tid.z": lambda s: s.zero,
    "clusterid.x": lambda s: s.cta[0],
    "cluster_ctarank": lambda s: s.zero,
    "cluster_ctaid.x": lambda s: s.zero,
    "globaltimer": lambda s: s.zero64,
    "clock64": lambda s: s.zero64,
    "clock": lambda s: s.zero,
}
