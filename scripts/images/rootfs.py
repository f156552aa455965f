#!/usr/bin/env python3
"""Lays out the root folder of an image around one binary: what it needs to run, and nothing else.

The one list of what is in our images; the local builds and the Dockerfile both use it. No shell, no package
manager: the binary, the libraries it is linked to, CA certificates, the user it runs as.
"""

import argparse
import os
import re
import shutil
import subprocess

ID = 65532  # the id that container images by custom give to a user without rights
FILES = {
    "etc/passwd": f"root:x:0:0:root:/:/sbin/nologin\nmillrace:x:{ID}:{ID}:millrace:/:/sbin/nologin\n",
    "etc/group": f"root:x:0:\nmillrace:x:{ID}:\n",
    # Without it some C libraries ask DNS before /etc/hosts.
    "etc/nsswitch.conf": "hosts: files dns\n",
}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def libraries(binary: str) -> list[str]:
    """Absolute paths, the loader included, as the binary names them."""
    linked = subprocess.run(["ldd", binary], check=True, capture_output=True, text=True).stdout
    if missing := re.findall(r"(\S+) => not found", linked):
        raise SystemExit(f"{binary} needs libraries that are not here: {', '.join(missing)}")
    return sorted(set(re.findall(r"(/\S+) \(0x", linked)))


def place(source: str, root: str, path: str, mode: int) -> None:
    target = os.path.join(root, path.lstrip("/"))
    os.makedirs(os.path.dirname(target), exist_ok=True)
    shutil.copyfile(source, target)  # follows links: the image has the file under the name it is asked for
    os.chmod(target, mode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary")
    parser.add_argument("root", help="an empty folder")
    args = parser.parse_args()

    for path, text in FILES.items():
        target = os.path.join(args.root, path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "w", encoding="ascii") as file:
            file.write(text)
        os.chmod(target, 0o644)
    place(CERTIFICATES, args.root, CERTIFICATES, 0o644)
    for library in libraries(args.binary):
        place(library, args.root, library, 0o755)
    place(args.binary, args.root, f"usr/local/bin/{os.path.basename(args.binary)}", 0o755)
    # Empty folders where pods mount their temporary and data volumes.
    for folder in ("tmp", "var/lib/millrace"):
        os.makedirs(os.path.join(args.root, folder), exist_ok=True)
    for folder, _, _ in os.walk(args.root):
        os.chmod(folder, 0o755)  # whatever the umask was


if __name__ == "__main__":
    main()
