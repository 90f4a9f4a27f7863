"""Runs the benchmarks, all of them or those named: `make bench B="debit webhooks"`."""

import importlib
import pkgutil
import sys

import benchmarks

NOT_ONES = {"__main__", "results"}


def names() -> list[str]:
    """The modules here with a `main`, by name."""
    found = {module.name for module in pkgutil.iter_modules(benchmarks.__path__)} - NOT_ONES
    return sorted(name for name in found if hasattr(importlib.import_module(f"benchmarks.{name}"), "main"))


def main(wanted: list[str]) -> None:
    known = names()
    if unknown := sorted(set(wanted) - set(known)):
        sys.exit(f"No benchmark {', '.join(unknown)}. There are: {', '.join(known)}.")
    for name in wanted or known:
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
