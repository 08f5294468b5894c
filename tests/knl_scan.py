"""Which instructions of an assembly listing a Xeon Phi 7200 lacks: of AVX-512 it has F, CD, ER and PF, nothing later.

What is missing: VL (EVEX forms on xmm and ymm registers), BW and DQ (bytes and words, some forms on doublewords), and
all that came after. Used by test_kernels_isa, on AT&T syntax as LLVM prints it.
"""

import re


def _words(*alternatives):
    """Matches a mnemonic that begins with one of them; `$` at the end of one: that is all of it."""
    return re.compile("(?:" + "|".join(alternatives) + ")")


# ---- forms that VL adds: told by their registers, masks, broadcasts, or by a name that only EVEX has ----------------

HIGH = re.compile(r"%[xy]mm(1[6-9]|2\d|3[01])\b")
MASKED = re.compile(r"\{%k\d\}|\{1to\d+\}|%k\d$")
SCALAR = re.compile(  # and moves of parts, which F has on all 32 registers
    r"s[sd]$|^v(cvtt?s[sd]2u?si|cvtu?si2s[sd]|u?comis|mov[dq]$|mov[lh]p|movhlps|movlhps|insertps|extractps)"
)
EVEX_NAMES = _words(
    "vmovdq[au](8|16|32|64)", "vp(and|andn|or|xor)[dq]", "vpternlog", "vpsra(q|vq)", "vpabsq", "vp(min|max)[su]q",
    "vpro[lr]", "vpermt2|vpermi2", "valign", "v(p?compress|p?expand|p?blendm)", "vget(exp|mant)p", "vr(cp|sqrt)14p",
    "vrndscalep", "vscalefp", "vfixupimmp", "vcvtt?p[sd]2u", "vcvtu(dq|qq)", "vcvt(t?p[sd]2qq|qq2p)",
    "v(broadcast|extract|insert|shuf)[fi](32|64)x", "vpmov(u?s)?(db|dw|qb|qw|qd|wb)", "vptestn?m", "vpconflict",
    "vplzcnt",
)  # fmt: skip

# ---- what BW and DQ add -------------------------------------------------------------------------------------------

DQ = _words(
    "kadd[bw]", "k(and|andn|or|xor|xnor|not|mov|ortest|test)b", "kshift[lr]b", "ktestw", "vpmullq", "vcvtt?p[sd]2u?qq",
    "vcvtu?qq2p", "v(fpclass|range|reduce)", "vpmov[dq]2m", "vpmovm2[dq]",
    "v(broadcast|extract|insert)[fi](32x8|64x2|32x2)",
)  # fmt: skip
DQ_ON_ZMM = _words("v(and|andn|or|xor)p[sd]$")
BW = _words(
    "k(add|and|andn|or|xor|xnor|not|mov|ortest|test|shift[lr])[dq]$", "kunpck(wd|dq)", "vpmovm2[bw]", "vpmov[bw]2m",
    "vperm([it]2)?w", "vmovdqu(8|16)", "vpblendm[bw]", "vptestn?m[bw]", "vdbpsad", "vpcmp(lt|le|neq|nlt|nle|)u?[bw]$",
)  # fmt: skip
BW_ON_ZMM = _words(
    "vp(add|sub)(u?s)?[bw]$", "vpabs[bw]", "vpavg", "vp(min|max)[su][bw]$", "vpmul(l|h|hu|hrs)w", "vpmadd(wd|ubsw)",
    "vps(ll|rl|ra)v?w", "vpshuf(b|hw|lw)", "vpunpck[lh](bw|wd)", "vpack", "vpmov[sz]xbw", "vpsadbw", "vpalignr",
    "vps[lr]ldq", "vpbroadcast[bw]", "vpcmp(eq|gt)u?[bw]", "vpmovu?s?wb",
)  # fmt: skip
LATER = _words(
    "vpdp", "vcvtne", r"v\w+(ph|sh|bf16)$(?<!vcvtps2ph)", "vpmadd52", "vperm([it]2)?b$", "vpmultishift",
    "vpsh[lr]dv?[dqw]$", "vpopcnt", "vp2intersect", "vgf2", "t(dp|ile)", "vp(compress|expand)[bw]$",
)  # fmt: skip


def lacking(line):
    """Which extension the instruction on this line needs that KNL does not have; empty where KNL can run it."""
    mnemonic, _, operands = line.split("#")[0].strip().partition("\t")
    if not mnemonic or mnemonic.startswith(".") or mnemonic.endswith(":"):
        return ""
    zmm = "%zmm" in operands
    if LATER.match(mnemonic):
        return "newer than AVX-512F"
    if BW.match(mnemonic) or (zmm and BW_ON_ZMM.match(mnemonic)):
        return "AVX512BW"
    if DQ.match(mnemonic) or (zmm and DQ_ON_ZMM.match(mnemonic)):
        return "AVX512DQ"
    if zmm or not re.search("%[xy]mm", operands) or SCALAR.search(mnemonic):
        return ""
    return "AVX512VL" if HIGH.search(operands) or MASKED.search(operands) or EVEX_NAMES.match(mnemonic) else ""


def scan(files):
    """The lines of these files that KNL cannot run, each with its place and the extension it needs."""
    return [
        f"{file.name}:{number} {needs}: {line.strip()}"
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if (needs := lacking(line))
    ]
