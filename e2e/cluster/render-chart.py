#!/usr/bin/env python3
"""Prints the manifests of a Helm chart, by Helm's own engine; `--lint` checks the chart instead.

For machines without the helm command: runs in an environment with helm-python-sdk.
"""

import argparse
import sys

import helm_python


def values(settings: list[str]) -> dict:
    return helm_python.parse_set_string(",".join(settings)) if settings else {}


def lint(chart: str, settings: list[str]) -> None:
    report = helm_python.lint(chart, values(settings), strict=True)
    for message in report["messages"]:
        print(message["path"], message["error"], sep=": ")
    if report["errors"] or any(message["severity"] >= 2 for message in report["messages"]):
        sys.exit(1)


def render(chart: str, namespace: str, settings: list[str]) -> None:
    with helm_python.Chart.load(chart) as loaded:
        manifests = loaded.render(values(settings), name="millrace", namespace=namespace)
    for path, text in sorted(manifests.items()):
        if text.strip() and not path.endswith("NOTES.txt"):
            print(f"---\n# Source: {path}\n{text.strip()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lint", action="store_true")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("chart")
    args = parser.parse_args()
    if args.lint:
        lint(args.chart, args.set)
    else:
        render(args.chart, args.namespace, args.set)


if __name__ == "__main__":
    main()
