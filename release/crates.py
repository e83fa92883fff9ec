# SPDX-License-Identifier: Apache-2.0
"""What the agent's binary is made of: the crates in it, the standard library and glibc."""
import json, re, tomllib
import common

def tree(triple):
    """(name, version) of the crates that the binary contains, with those that each uses. Crates of build scripts, tests
    and procedural macros are not in the binary."""
    lines = common.output("cargo", "tree", "-p", "kube-ipvs", "-e", "normal,no-proc-macro", "--target", triple, "--locked",
                          "--prefix", "depth", "--format", " {p}")
    uses, path = {}, []
    for depth, name, version in re.findall(r"^(\d+) (\S+) v(\S+)", lines, re.M):
        del path[int(depth):]
        crate = (name, version)
        uses.setdefault(crate, set())
        if path:
            uses[path[-1]].add(crate)
        path.append(crate)
    return uses

def metadata(triple):
    """(name, version) → licence, repository, and the digest of the crate's file."""
    found = json.loads(common.output("cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", triple))
    lock = tomllib.loads((common.ROOT / "Cargo.lock").read_text())["package"]
    digests = {(p["name"], p["version"]): p.get("checksum") for p in lock}
    return {(p["name"], p["version"]): {"licence": (p["license"] or "").replace("/", " OR ") or None, "repository": p["repository"],
                                        "sha256": digests.get((p["name"], p["version"])), "ours": p["source"] is None}
            for p in found["packages"]}

def libraries(binary):
    """What is linked besides crates, as the binary itself says: name, version, licence, purl."""
    data = binary.read_bytes()
    rust = re.search(rb"rustc version ([\d.]+)", data)
    glibc = (re.search(rb"GNU C Library \(Debian GLIBC ([^)\s]+)\)", data)
             or re.search(rb"GNU C Library \([^)]*\) stable release version ([\d.]+)\.", data))
    if not rust or not glibc:
        common.die(f"{binary} does not say its {'glibc' if rust else 'rustc'}")
    rust, glibc = rust.group(1).decode(), glibc.group(1).decode()
    deb = f"pkg:deb/debian/glibc@{glibc.replace('+', '%2B')}?arch=source" if "-" in glibc else None
    return [("rust-std", rust, "MIT OR Apache-2.0", None), ("glibc", glibc, "LGPL-2.1-or-later", deb)]

def architecture(binary):
    machine = int.from_bytes(binary.read_bytes()[18:20], "little")
    return {62: "amd64", 183: "arm64"}.get(machine) or common.die(f"{binary}: e_machine {machine} is not known")
