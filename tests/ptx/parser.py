"""PTX text to kernels: declarations, labels, instructions."""

from __future__ import annotations

import re

import numpy as np

from ptx.values import UNSIGNED, PTXUnsupported


# ----------------------------------------------------------------------------- parser
class Instr:
    __slots__ = ("args", "dst", "mods", "neg", "op", "pred", "run", "text")

    def __repr__(self):
        return self.text


class Kernel:
    def __init__(self):
        self.params, self.regs, self.code, self.labels = [], {}, [], {}
        self.shared, self.local, self.shared_size, self.local_size = {}, {}, 0, 0
        self.reqntid = None


def _split(s):
    out, d, cur = [], 0, ""
    for c in s:
        if c in "{[(":
            d += 1
        elif c in "}])":
            d -= 1
        if c == "," and d == 0:
            out.append(cur.strip())
            cur = ""
        else:
            cur += c
    if cur.strip():
        out.append(cur.strip())
    return out


def _decl_array(stmt):
    m = re.search(r"\.align\s+(\d+)\s+\.b(\d+)\s+([\w$.%]+)(\[(\d*)\])?(?:\s*=\s*\{(.*)\})?", stmt, re.S)
    if not m:
        m2 = re.search(r"\.[bu](\d+)\s+([\w$.%]+)(\[(\d*)\])?", stmt)
        return m2.group(2), int(m2.group(1)) // 8 * int(m2.group(4) or 1), int(m2.group(1)) // 8, None
    n = int(m.group(5)) if m.group(5) else (0 if m.group(4) else 1)
    init = None
    if m.group(6):
        init = np.array(
            [int(v, 0) for v in m.group(6).replace("\n", " ").split(",") if v.strip()], dtype=UNSIGNED[int(m.group(2))]
        )
    return m.group(3), n * int(m.group(2)) // 8, int(m.group(1)), init


def parse(ptx):
    """PTX text -> ({kernel name: Kernel}, {global symbol: initial bytes})."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    ptx = re.sub(r"/\*.*?\*/", "", ptx, flags=re.S)
    ptx = re.split(r"\n\s*\.section\b", ptx)[0]
    ptx = re.sub(r"^\s*\.(loc|file)\b[^\n]*$", "", ptx, flags=re.M)
    globs, kernels, dyn = {}, {}, []
    for m in re.finditer(r"^\s*(?:\.visible\s+|\.extern\s+|\.weak\s+)?\.(global|const|shared)\b[^;]*;", ptx, re.M):
        name, size, _, init = _decl_array(m.group(0))
        if m.group(1) == "shared":
            dyn.append(name)
        else:
            g = np.zeros(max(size, 1), np.uint8)
            if init is not None:
                b = init.view(np.uint8)
                g[: b.size] = b
            globs[name] = g
    for m in re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", ptx):
        k = Kernel()
        k.name = m.group(1)
        for p in _split(m.group(2)):
            pm = re.match(
                r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s*(?:\.\w+\s*)*(?:\.align\s+\d+\s+)?)?([\w$]+)(\[\d+\])?$",
                p.strip(),
            )
            if not pm:
                raise PTXUnsupported("param " + p)
            k.params.append((pm.group(2), pm.group(1) + (pm.group(3) or "")))
        t = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)(?:\s*,\s*(\d+))?", m.group(3))
        k.reqntid = int(t.group(1)) if t else None
        for n in dyn:
            k.shared[n] = 0
        _body(k, ptx, m.end())
        kernels[k.name] = k
    return kernels, globs


def _rename(argument, names):
    """Names declared inside braces, made unique."""
    return re.sub(r"[%$A-Za-z_][\w$]*", lambda found: names.get(found.group(0), found.group(0)), argument)


def _body(k, s, i):
    scopes, nscope = [{}], 0
    n = len(s)
    while i < n:
        while s[i].isspace():
            i += 1
        c = s[i]
        if c == "{":
            nscope += 1
            scopes.append({})
            i += 1
            continue
        if c == "}":
            scopes.pop()
            i += 1
            if not scopes:
                return
            continue
        m = re.match(r"([$%\w]+):(?!:)", s[i : i + 200])
        if m:
            lab = m.group(1)
            if len(scopes) > 1:  # labels of inline-asm blocks are local to their braces
                scopes[-1][lab] = f"{lab}@{nscope}"
                lab = f"{lab}@{nscope}"
            k.labels[lab] = len(k.code)
            i += m.end()
            continue
        j = s.index(";", i)
        st = " ".join(s[i:j].split())
        i = j + 1
        if not st or st.startswith((".pragma", ".loc ")):
            continue
        if st.startswith(".reg"):
            m = re.match(r"\.reg\s+\.(\w+)\s+(.*)", st)
            for nm in m.group(2).split(","):
                nm = nm.strip()
                r = re.match(r"(.*)<(\d+)>$", nm)
                if len(scopes) > 1:
                    for q in [f"{r.group(1)}{z}" for z in range(int(r.group(2)))] if r else [nm]:
                        scopes[-1][q] = f"{q}@{nscope}"
                        k.regs[f"{q}@{nscope}"] = m.group(1)
                elif r:
                    for z in range(int(r.group(2))):
                        k.regs[f"{r.group(1)}{z}"] = m.group(1)
                else:
                    k.regs[nm] = m.group(1)
            continue
        if st.startswith((".local", ".shared")):
            name, size, al, _ = _decl_array(st)
            if st.startswith(".local"):
                o = -(-k.local_size // al) * al
                k.local[name] = o
                k.local_size = o + size
            else:
                o = -(-k.shared_size // al) * al
                k.shared[name] = o
                k.shared_size = o + size
            continue
        if st.startswith("."):
            continue
        ren = {}
        for sc in scopes[1:]:
            ren.update(sc)
        ins = Instr()
        ins.text = st
        ins.pred = None
        ins.neg = False
        m = re.match(r"@(!?)([%\w$]+)\s+(.*)", st)
        if m:
            ins.neg, ins.pred, st = bool(m.group(1)), m.group(2), m.group(3)
        m = re.match(r"([a-z0-9_]+)((?:[.:][\w:]+)*)\s*(.*)", st)
        ins.op = m.group(1)
        ins.mods = [q for q in m.group(2).split(".") if q]
        ins.args = _split(m.group(3))
        if ren:
            ins.args = [_rename(a, ren) for a in ins.args]
            if ins.pred:
                ins.pred = ren.get(ins.pred, ins.pred)
        k.code.append(ins)
