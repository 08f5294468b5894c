"""Hostile tars and pictures for `knltrain pack`, for fuzz.py."""

import bz2
import gzip
import io
import lzma
import struct
import zlib

import numpy as np
from fuzz import Case, Kind

from knltrain.data import DataSet

SIZES = [-512, -1, 1, 511, 513, 2**31, 2**33 - 1, 2**40, 2**62, -(2**62), 1 << 30]
NAMES = [
    "a\0b",
    "../" * 50 + "x",
    "/" * 3000,
    "a/" * 300,
    "n" * 5000,
    "",
    ".",
    "..",
    "a/b/c.tar",
    "\udce9/x",
    "\x1b[2A/x",
]
NUMBERS = ["-1", "0", "1" * 400, "9" * 5000, "-512", "1e9", "nan", " 7 ", "0x10", str(2**63)]
KINDS_OF_MEMBERS = [*(bytes([b]) for b in b"01234567LKxgXSDMVN\0"), b"\xff"]


def picture(random, kind=None):
    """The bytes of a small picture file that is whole."""
    from PIL import Image

    height, width = random.integers(1, 40, 2)
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    kind = kind or ("JPEG", "PNG", "BMP", "GIF", "WEBP")[random.integers(5)]
    options = {"progressive": bool(random.integers(2)), "quality": 80} if kind == "JPEG" else {}
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def header(random, name, size, kind=b"0", link=""):
    """A member's header with a checksum that fits, whatever it claims."""
    head = bytearray(512)
    head[0 : len(name[:100])] = name[:100]
    head[100:108], head[124:136] = b"0000644\0", (size % 256**12 | 2**95).to_bytes(12, "big")  # base 256
    if 0 <= size < 8**11:
        head[124:136] = b"%011o\0" % size
    head[156:157], head[157 : 157 + len(link[:100])] = kind, link[:100].encode("utf-8", "surrogateescape")
    head[257:265] = (b"ustar\x0000", b"ustar  \0", bytes(8))[random.integers(3)]
    head[148:156] = b"        "
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def padded(data):
    return data + bytes(-len(data) % 512)


def pax(random, text):
    """Records of a PAX header, one of them hostile."""
    keys = ["path", "linkpath", "size", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "hdrcharset", "mtime"]
    key = keys[random.integers(len(keys))]
    record = f" {key}={text}\n".encode("utf-8", "surrogateescape")
    length = len(record) + len(str(len(record) + 3)) if random.integers(3) else int(random.integers(0, 10**6))
    return f"{length}".encode() + record


def members(random):
    """A tar of two classes, with hostile members between them."""
    parts = []
    for i in range(random.integers(1, 8)):
        name, data = f"{'ab'[i % 2]}/{i}.jpg".encode(), picture(random)
        choice = random.integers(6)
        if choice == 0:
            size = SIZES[random.integers(len(SIZES))]
            parts.append(header(random, name, size, KINDS_OF_MEMBERS[random.integers(len(KINDS_OF_MEMBERS))]))
        elif choice == 1:
            texts = NAMES + NUMBERS
            records = pax(random, texts[random.integers(len(texts))])
            parts.append(header(random, b"x", len(records), b"xgX"[random.integers(3)].to_bytes()) + padded(records))
        elif choice == 2:
            text = NAMES[random.integers(len(NAMES))].encode("utf-8", "surrogateescape")
            parts.append(header(random, b"x", len(text), b"LK"[random.integers(2)].to_bytes()) + padded(text))
        elif choice == 3:
            link = [*NAMES, "a", "b", "a/0.jpg", "b/1.jpg", f"a/{i}.jpg"][random.integers(len(NAMES) + 5)]
            parts.append(header(random, name, 0, b"12"[random.integers(2)].to_bytes(), link))
        parts.append(header(random, name, len(data)) + padded(data))
    return parts


def tar(random, folder):
    """A tar with members that lie, nested, compressed, cut or damaged."""
    data = b"".join(members(random)) + bytes(1024)
    for _ in range(random.integers(0, 8) if random.integers(4) == 0 else 0):
        data = header(random, b"t.tar", len(data)) + padded(data) + bytes(1024)
    data = (bytes, bytes, bytes, gzip.compress, bz2.compress, lzma.compress)[random.integers(6)](data)
    return _case(random, folder, "x.tar", damaged(random, data) if random.integers(2) else data)


def bomb(random, folder):
    """Few bytes that promise many: sizes in headers, streams of zeros, scans, chunks."""
    zeros = int(random.integers(1, 200)) << 20
    choice = random.integers(5)
    if choice == 0:
        data = gzip.compress(header(random, b"a/x.png", zeros), 1)
        for _ in range(zeros >> 20):
            data += _ZEROS
        return _case(random, folder, "x.tar.gz", data, hostile=zeros > 64 << 20)
    if choice == 1:
        kind = b"LKxgX"[random.integers(5)].to_bytes()
        data = header(random, b"a/x", int(random.integers(1 << 20, 1 << 45)), kind)
        return _case(random, folder, "x.tar", data + bytes(1024), hostile=True)
    if choice == 2:  # 2,000 links, or the same tar in a tar in a tar
        links = [header(random, f"l{i}".encode(), 0, b"2", "a") for i in range(random.integers(20, 2000))]
        data = header(random, b"a/x.png", 0) + b"".join(links) + bytes(1024)
        return _case(random, folder, "x.tar", data, hostile=True)
    if choice == 3:
        data = picture(random, "JPEG")
        last = data.rindex(b"\xff\xda")
        data = data[:-2] + data[last:-2] * int(random.integers(200, 2000)) + data[-2:]
    else:
        width, height = (int(n) for n in random.integers(2**14, 2**31, 2))
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        body = b"IDAT" + zlib.compress(bytes(1 << 20))
        chunks = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, body, b"IEND")]
        data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    return _case(random, folder, "x.jpg", data, hostile=True)


def damaged_picture(random, folder):
    """Bytes of a picture changed, cut or doubled; it is read, or left out by name."""
    return _case(random, folder, "x.jpg", damaged(random, picture(random)))


_ZEROS = gzip.compress(bytes(1 << 20), 9)


def damaged(random, data):
    data = bytearray(data)
    for _ in range(random.integers(1, 6)):
        at, to = sorted(random.integers(0, len(data) + 1, 2).tolist())
        choice = random.integers(4)
        if choice == 0:
            del data[at:]
            data += bytes(1)
        elif choice == 1:
            data[at:at] = data[at : min(to, at + 2000)]
        elif choice == 2:
            data[at : at + 1] = b"\xff"
        else:
            data[at : at + 4] = random.bytes(4)
    return bytes(data)


def _case(random, folder, name, data, hostile=False):
    """`pack` of a tar, or of a picture in a class folder beside one that is whole; hostile: it cannot be right."""
    source = folder / name
    if name.endswith(".jpg"):
        source = folder / "src"
        (source / "a").mkdir(parents=True)
        (source / "a" / name).write_bytes(data)
        (source / "a" / "whole.png").write_bytes(picture(random, "PNG"))
    else:
        source.write_bytes(data)
    encoding = ("raw", "jpeg")[random.integers(2)]
    size = (0, 16)[random.integers(2)] if encoding == "jpeg" else 16
    argv = ["pack", str(source), str(folder / "out"), "--encoding", encoding, "--size", str(size), "--max-bad", "1.0"]

    def verdict(code, text):
        skipped = text.count("skipped ")
        if hostile and code == 0 and not skipped:
            return "accepted silently"
        if source.is_dir() and code:
            return f"exit code {code} for one picture that is whole and one that may not be"
        rows = rows_of(folder / "out") if code == 0 else 0
        return f"{rows} rows and {skipped} skipped of 2" if source.is_dir() and rows + skipped != 2 else ""

    return Case(argv, verdict)


def rows_of(out):
    """How many pictures were packed, each of which is read back."""
    data = DataSet(out)
    assert all(data.image(row).ndim == 3 for row in range(len(data)))
    return len(data)


KINDS = {"pack_tar": Kind(500, tar), "pack_picture": Kind(400, damaged_picture), "pack_bomb": Kind(100, bomb)}
