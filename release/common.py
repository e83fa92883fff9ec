# SPDX-License-Identifier: Apache-2.0
"""What the scripts of this folder share: the version, the commit, its time, digests."""
import gzip, hashlib, io, json, os, pathlib, re, subprocess, sys, tarfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/kube-ipvs/kube-ipvs"
IMAGE = "ghcr.io/kube-ipvs/kube-ipvs"
# Names of architectures: of images and Debian, and of Rust.
TRIPLES = {"amd64": "x86_64-unknown-linux-gnu", "arm64": "aarch64-unknown-linux-gnu"}

def die(message):
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {message}")

def output(*command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        die(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout

def version():
    return re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)

def commit():
    return output("git", "rev-parse", "HEAD").strip()

def epoch():
    """The time that all files of a release have: SOURCE_DATE_EPOCH, or that of the last commit."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or output("git", "log", "-1", "--format=%ct"))

def digest(data):
    return hashlib.sha256(data).hexdigest()

def text(value):
    """JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

class Tar:
    """A tar file that depends on names and contents alone."""

    def __init__(self, time):
        self.out, self.time = io.BytesIO(), time
        self.tar = tarfile.open(fileobj=self.out, mode="w", format=tarfile.PAX_FORMAT)

    def file(self, name, data, mode=0o644):
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), mode, self.time
        self.tar.addfile(info, io.BytesIO(data))

    def bytes(self):
        self.tar.close()
        return self.out.getvalue()

    def gzipped(self):
        return gzip.compress(self.bytes(), 9, mtime=0)
