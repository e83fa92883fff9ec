# SPDX-License-Identifier: Apache-2.0
"""The Debian packages in the root file system that image/base-root makes."""
import re
import common

# Short names of Debian's copyright files → SPDX.
LICENCES = {"Apache-2.0": "Apache-2.0", "Artistic": "Artistic-1.0-Perl", "BSD-3-clause": "BSD-3-Clause", "Expat": "MIT",
            "GPL-1+": "GPL-1.0-or-later", "GPL-2": "GPL-2.0-only", "GPL-2+": "GPL-2.0-or-later",
            "GPL-2.0+": "GPL-2.0-or-later", "LGPL-2.1": "LGPL-2.1-only", "LGPL-2.1+": "LGPL-2.1-or-later",
            "MPL-2.0": "MPL-2.0", "zlib": "Zlib"}

def fields(path):
    """The first line of each field of a control file."""
    return dict(re.findall(r"^([A-Za-z-]+): (.*)$", path.read_text(), re.M))

def licence(copyright_file):
    """An SPDX expression of all licences that the file names, or None, and a sentence on where it comes from."""
    names = re.findall(r"^License: *(.*?) *$", copyright_file.read_text(), re.M) if copyright_file.is_file() else []
    where = f"/usr/share/doc/{copyright_file.parent.name}/copyright in the image has the licences"
    parts = {name: [LICENCES.get(side.strip()) for side in re.split(r"\bor\b", name)] for name in set(names)}
    if not parts or any(None in sides for sides in parts.values()):
        return None, f"{where}{': ' + ', '.join(sorted(filter(None, parts))) if parts else ''}."
    sides = sorted({" OR ".join(sides) if len(sides) == 1 else f"({' OR '.join(sides)})" for sides in parts.values()})
    return " AND ".join(sides), f"{where}, which apply to different files of the source package."

def packages(base):
    """Name, version, source package, architecture, homepage, supplier, SPDX expression and its origin of each package."""
    release = dict(re.findall(r'^(\w+)="?(.*?)"?$', (base / "etc/os-release").read_text(), re.M))
    found = [fields(path) for path in sorted((base / "var/lib/dpkg/status.d").iterdir())]
    if not found:
        common.die(f"{base} has no list of packages")
    documented = {}
    for package in found:
        package["Source"] = package.get("Source", package["Package"]).split(" ")[0]
        path = base / "usr/share/doc" / package["Package"] / "copyright"
        if path.is_file():
            documented.setdefault(package["Source"], path)
    for package in found:
        path = base / "usr/share/doc" / package["Package"] / "copyright"
        expression, origin = licence(path if path.is_file() else documented.get(package["Source"], path))
        yield {"name": package["Package"], "version": package["Version"], "source": package["Source"],
               "homepage": package.get("Homepage"), "licence": expression, "origin": origin,
               "purl": f"pkg:deb/debian/{package['Package']}@{package['Version'].replace('+', '%2B')}"
                       f"?arch={package['Architecture']}&distro={release['ID']}-{release['VERSION_ID']}"}
