"""Runs the PTX that Triton compiled, on the CPU, with numpy.

Triton's interpreter runs the Python source of a kernel; this runs what the compiler made of it: layouts, swizzled
shared memory, pipelines of asynchronous copies, matrix fragments, masks, atomics.

    launch(compiled, grid, *arguments)

- Every thread of up to ``batch`` blocks is one lane of numpy arrays; values that a warp shares keep length 1.
- Each lane has its own program counter, and the lowest runs first. ``bar.sync`` parks lanes until all others
  have arrived or left.
- Every tensor has an address window of 1 TiB of its own: an access outside its storage, or misaligned, raises
  ``PTXFault`` with the instruction, the thread and the offset.
- ``cp.async`` lands at the ``wait_group`` that waits for it. Shared memory starts as NaN, so a missing wait shows.
- Shuffles and matrix instructions insist on converged warps, as the hardware does.

Not modelled: the order of ``wgmma`` and ``tcgen05`` operations between fences (they run when issued), TMA, clusters,
weak memory ordering between blocks, the exact bits of approximate functions (they are correctly rounded unless
``noise`` is given). ``ptxas`` and machine code are not executed. It checks what a kernel
computes and is no detector of races.
"""

from __future__ import annotations

import re

import numpy as np
import torch

from ptx.arithmetic import Arithmetic
from ptx.conversions import Conversions
from ptx.machine import Memory, State
from ptx.memory import MemoryAccess
from ptx.parser import parse
from ptx.tensor_cores import TensorCores
from ptx.values import UNSIGNED, PTXFault, PTXUnsupported, type_info
from ptx.warps import Warps


class Translator(Arithmetic, Conversions, MemoryAccess, TensorCores, Warps):
    """Translates the instructions of one kernel into closures ``run(state, mask)``."""


CONTROL = {"bra", "ret", "exit", "bar", "barrier", "brx", "call"}


class Program:
    """Basic blocks of closures."""

    def __init__(self, K, globs, opt):
        self.K = K
        tr = Translator(K, globs, opt)
        K.uses = {}
        for ins in K.code:
            for a in ins.args[1:]:
                for q in re.findall(r"[%$\w@]+", a):
                    K.uses[q] = K.uses.get(q, 0) + 1
            if ins.op in ("st", "red"):
                for q in re.findall(r"[%$\w@]+", ins.args[0]):
                    K.uses[q] = K.uses.get(q, 0) + 1
            if ins.pred:
                K.uses[ins.pred] = K.uses.get(ins.pred, 0) + 1
        starts = sorted({0, *K.labels.values(), *[i + 1 for i, x in enumerate(K.code) if x.op in CONTROL]})
        starts = [s for s in starts if s < len(K.code)]
        self.index = {s: i for i, s in enumerate(starts)}
        self.blocks = []
        for i, s in enumerate(starts):
            e = starts[i + 1] if i + 1 < len(starts) else len(K.code)
            body = K.code[s:e]
            term = body[-1] if body and body[-1].op in CONTROL else None
            run = [(tr.build(x), x) for x in (body[:-1] if term else body)]
            tgt = None
            if term is not None and term.op == "bra":
                pos = K.labels[term.args[0]]
                tgt = self.index.get(pos, len(starts))
            elif term is not None and term.op in ("brx", "call"):
                raise PTXUnsupported(term.text)
            cond = tr.src(term.pred, "pred") if term is not None and term.pred else None
            self.blocks.append((run, term, tgt, cond, term.neg if term is not None else False))


class Batch(State):
    def __init__(self, prog, mem, block_ids, grid, ntid, smem_size, params, opt):
        n = len(block_ids) * ntid
        super().__init__(prog.K, mem, n)
        self.prog, self.params, self.opt = prog, params, opt
        self.block_ids = np.asarray(block_ids, np.int64)
        nb = len(block_ids)

        def u32(a):
            return np.ascontiguousarray(a, dtype=np.uint32)

        self.tid = np.tile(np.arange(ntid), nb)
        self.tid32 = u32(self.tid)
        self.ntid = u32([ntid])
        self.nt = ntid
        self.block_of_lane = np.repeat(np.arange(nb, dtype=np.int64), ntid)
        self.lane_ids = np.arange(n, dtype=np.int64)
        gx, gy, _gz = grid
        bx, by, bz = self.block_ids % gx, self.block_ids // gx % gy, self.block_ids // (gx * gy)
        ex = (lambda a: u32(np.repeat(a, ntid))) if nb > 1 else (lambda a: u32(a))
        self.cta = [ex(bx), ex(by), ex(bz)]
        self.grid = [u32([g]) for g in grid]
        self.laneid, self.warpid = u32(self.tid % 32), u32(self.tid // 32)
        self.zero, self.zero64 = u32([0]), np.zeros(1, np.uint64)
        self.smem_size = -(-max(smem_size, 16) // 16) * 16
        self.smem = np.full(nb * self.smem_size, 0xFF, np.uint8)
        self.lmem_size = -(-max(prog.K.local_size, 16) // 16) * 16
        self.lmem = np.zeros(n * self.lmem_size if prog.K.local_size else 16, np.uint8)
        self.mbar, self.tmem, self.tmem_next = {}, None, np.zeros(nb, np.int64)
        if any(x.op == "tcgen05" for x in prog.K.code):
            self.tmem = np.full((nb, 128, 512), 0x7FC00000, np.uint32)  # NaN until written
        self.cp_commit, self.cp_pending = np.zeros(n, np.int64), []

    def mbar_arrive(self, b, a, what):
        q = self.mbar.get((b, a))
        if q is None:
            raise PTXFault(what + ": arrive on an mbarrier that was never initialised")
        q[1] -= 1
        if q[1] == 0:
            q[0] += 1
            q[1] = q[2]

    def converged(self, m, what):
        if m is not None:
            w = m.reshape(-1, 32)
            if (w.any(1) & ~w.all(1)).any():
                raise PTXFault(what + ": warp collective executed by a diverged warp")

    def cp_wait(self, n, m):
        keep = []
        for lanes, grp, da, words, what in self.cp_pending:
            done = np.ones(lanes.size, bool) if n < 0 else grp < (self.cp_commit[lanes] - n)
            if m is not None:
                done &= m[lanes]
            if done.any():
                ln = lanes[done]
                base = self.block_of_lane[ln] * self.smem_size + da[done]
                if (da[done] & 3).any() or da[done].min() < 0 or da[done].max() + 4 * len(words) > self.smem_size:
                    raise PTXFault(what + ": cp.async destination")
                sm = self.smem.view(np.uint32)
                for i, w in enumerate(words):
                    sm[(base >> 2) + i] = w[done]
            if not done.all():
                k = ~done
                keep.append((lanes[k], grp[k], da[k], [w[k] for w in words], what))
        self.cp_pending = keep

    def run(self):
        P, n = self.prog.blocks, self.n
        END = len(P)
        stats = self.opt["stats"]
        sched = self.opt["sched_rng"]
        gran = 128 if any(x.op == "wgmma" for x in self.K.code) else 32
        pc = None if sched is None else np.zeros(n, np.int64)  # None -> all lanes share `cur`
        cur, steps = 0, 0
        waiting = np.zeros(n, bool)
        while True:
            if pc is not None:
                live = np.where(waiting, END + 1, pc)
                cur = int(live.min())
                if cur >= END:
                    if not waiting.any():
                        return
                    waiting[:] = False  # every lane waits or has left, so each block's barrier is complete
                    if sched is None and (pc == pc[0]).all():
                        cur = int(pc[0])
                        pc = None
                    continue
                m = live == cur
                if sched is not None:
                    first = live.reshape(-1, gran).min(1)
                    pick = (first < END) & (sched.random(first.size) < 0.5)
                    if not pick.any():
                        pick = first < END
                    cur = int(sched.choice(first[pick]))
                    m = (live == cur) & np.repeat(pick, gran)
                if m.all():
                    m = None
                    pc = None if sched is None else pc
            else:
                if cur >= END:
                    return
                m = None
            body, term, tgt, cond, neg = P[cur]
            for f, ins in body:
                try:
                    f(self, m)
                except (PTXFault, PTXUnsupported):
                    raise
                except Exception as e:
                    raise RuntimeError(f"emulator error at `{ins.text}`: {type(e).__name__}: {e}") from e
                if stats is not None:
                    key = ins.op + "." + ".".join(ins.mods)
                    stats[key] = stats.get(key, 0) + (n if m is None else int(m.sum()))
            steps += 1
            if steps > self.opt["max_steps"]:
                raise PTXFault("step limit: endless loop?")
            nxt = cur + 1
            if term is None:
                pass
            elif term.op == "bra":
                if cond is None:
                    nxt = tgt
                else:
                    q = cond(self)
                    if neg:
                        q = ~q
                    if q.shape[0] == 1 or q.all() or not q.any():
                        nxt = tgt if q[0] else nxt
                    else:
                        nxt = np.where(q, tgt, nxt)
            elif term.op in ("ret", "exit"):
                if cond is None:
                    nxt = END
                else:
                    q = self.full(cond(self))
                    q = ~q if neg else q
                    nxt = np.where(q, END, nxt)
            else:  # bar.sync
                if m is not None:
                    pc = np.where(m, nxt, pc)
                    waiting = waiting | m
                    continue
                # all lanes arrive together: barrier passes at once
            if m is None and not isinstance(nxt, np.ndarray):
                cur = nxt
                pc = None if sched is None else np.full(n, nxt, np.int64)
            else:
                if pc is None:
                    pc = np.full(n, cur, np.int64)
                pc = np.where(m, nxt, pc) if m is not None else np.asarray(nxt, np.int64).copy()


def _storage(argument):
    """The array a pointer argument reaches: from the tensor's first element to the end of its storage."""
    if isinstance(argument, np.ndarray):
        return argument
    if not isinstance(argument, torch.Tensor):
        return None
    if argument.device.type != "cpu":
        raise TypeError(f"the emulator runs on CPU tensors; got one on {argument.device}")
    argument = argument.detach()
    room = argument.untyped_storage().nbytes() // argument.element_size() - argument.storage_offset()
    flat = torch.as_strided(argument, (room,), (1,), argument.storage_offset())
    if argument.dtype is torch.bfloat16:
        return flat.view(torch.int16).numpy()
    return flat.view(torch.uint8).numpy() if argument.dtype is torch.bool else flat.numpy()


_CACHE = {}


def launch(
    compiled,
    grid,
    *args,
    kernel=None,
    num_threads=None,
    shared=None,
    batch=None,
    noise=0.0,
    seed=0,
    atomic_seed=None,
    sched_seed=None,
    stats=None,
    ftz=True,
    max_steps=10_000_000,
):
    """Runs a kernel over ``grid``; tensors are modified in place.

    Args:
        compiled: Triton's compiled kernel, or the text of one.
        args: the arguments that are not compile-time constants, in order. CPU tensors may be strided views.
        batch: blocks emulated at once.
        noise: perturb the results of approximate instructions by up to this many times the bound that the PTX manual
            gives for them.
        atomic_seed: apply atomics, and run blocks, in a random order, as a GPU might.
        sched_seed: run random subsets of the warps between barriers instead of all in step. A missing barrier then
            shows under some seeds.
        stats: a dictionary to fill with the number of executions of each instruction, counted per thread.
        ftz: honour ``.ftz``.
    """
    text = compiled if isinstance(compiled, str) else compiled.asm["ptx"]
    grid = (grid,) if isinstance(grid, int) else tuple(grid)
    grid = tuple(int(g) for g in grid) + (1,) * (3 - len(grid))
    opt = {
        "noise": noise,
        "rng": np.random.default_rng(seed),
        "ftz": ftz,
        "stats": stats,
        "max_steps": max_steps,
        "atomic_rng": None if atomic_seed is None else np.random.default_rng(atomic_seed),
        "sched_rng": None if sched_seed is None else np.random.default_rng(sched_seed),
    }
    key = (text, noise, ftz, seed)
    ent = _CACHE.get(key) if atomic_seed is None else None
    if ent is None:
        ks, globs = parse(text)
        K = ks[kernel or next(iter(ks))]
        ent = (Program(K, globs, opt), globs)
        if atomic_seed is None:  # noise goes on where it was; the order of atomics starts afresh
            _CACHE[key] = ent
    prog, globs = ent
    K = prog.K
    names = [f"arg{i}" for i in range(len(args))]
    if not isinstance(compiled, str):
        shared = compiled.metadata.shared if shared is None else shared
        num_threads = num_threads or compiled.metadata.num_warps * 32
        sig = compiled.src.signature
        names = [n for n, t in sig.items() if t != "constexpr"]
        if len(names) != len(args):
            raise TypeError(f"kernel takes {len(names)} runtime arguments {names}, got {len(args)}")
    num_threads = num_threads or K.reqntid
    mem = Memory()
    for g, v in globs.items():
        mem.sym[g] = mem.add(v, "symbol " + g)
    params = {}
    for (pn, pt), a, nm in zip(
        K.params, list(args) + [None] * (len(K.params) - len(args)), names + [""] * len(K.params)
    ):
        arr = _storage(a)
        if arr is not None:
            if not arr.flags.c_contiguous:
                raise ValueError(f"{nm}: pass contiguous numpy arrays (or a torch view)")
            params[pn] = np.array([mem.add(arr, nm)], np.uint64).tobytes()
        elif a is None:
            params[pn] = b"\0" * 8
        elif pt in ("f32", "f64", "f16") or isinstance(a, float):
            w = type_info(pt)[1]
            params[pn] = np.array([a], {16: np.float16, 32: np.float32, 64: np.float64}[w]).tobytes() + b"\0" * 8
        else:
            w = type_info(pt)[1]
            params[pn] = np.array([int(a) & ((1 << w) - 1)], UNSIGNED[w]).tobytes() + b"\0" * 8
    total = grid[0] * grid[1] * grid[2]
    order = np.arange(total)
    if opt["atomic_rng"] is not None:
        order = opt["atomic_rng"].permutation(total)
    smem = max(shared or 0, K.shared_size)
    batch = batch or max(1, min(total, 8192 // num_threads))
    with np.errstate(all="ignore"):
        for s in range(0, total, batch):
            Batch(prog, mem, order[s : s + batch], grid, num_threads, smem, params, opt).run()
