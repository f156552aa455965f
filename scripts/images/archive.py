#!/usr/bin/env python3
"""Writes a container image of one layer, as `docker load` and `kind load image-archive` read it, out of a folder.

Needs no container engine, and the same folder always gives the same bytes: owners are root unless stated,
times are zero, entries are sorted.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import tarfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def layer_of(folder: str) -> bytes:
    def normalise(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(folder, arcname=".", filter=normalise)  # `add` sorts the entries of each folder
    return buffer.getvalue()


def write(out: str, files: dict[str, bytes]) -> None:
    with tarfile.open(out + ".tmp", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    os.replace(out + ".tmp", out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name:tag")
    parser.add_argument("--entrypoint", required=True)
    parser.add_argument("--user", default="", help="uid:gid")
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("folder")
    parser.add_argument("out")
    args = parser.parse_args()

    layer = layer_of(args.folder)
    config = json.dumps(
        {
            "architecture": ARCHITECTURES[platform.machine()],
            "os": "linux",
            "config": {
                "Entrypoint": [args.entrypoint],
                "User": args.user,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Labels": dict(label.split("=", 1) for label in args.label),
            },
            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        }
    ).encode()
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [args.name], "Layers": ["layer.tar"]}]).encode()
    # Level 1: the image goes no further than the next room, time counts more than size.
    write(
        args.out,
        {"layer.tar": gzip.compress(layer, 1, mtime=0), config_name: config, "manifest.json": manifest},
    )


if __name__ == "__main__":
    main()
