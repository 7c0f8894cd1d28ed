"""``python -m espnet3_lite.compat FILE...``: let programs written for Lightning import this package, in place.

The command ends with status 1 where something could not be changed; what could be is changed all the same.
"""

import argparse
import io
import sys
import tokenize
from pathlib import Path

from espnet3_lite.checkpoint.atomic_files import replacing
from espnet3_lite.compat.rewriting import rewrite


def main(arguments: list[str] | None = None) -> int:
    """Rewrite each file, and tell about it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet3_lite.compat",
        description="Change Lightning's imports into espnet3_lite.compat's, in place. Nothing else changes.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a Python file, or a folder of them")
    parser.add_argument("--dry-run", action="store_true", help="tell only, and write nothing")
    options = parser.parse_args(arguments)
    unfinished = False
    for given in options.files:
        for path in sorted(given.rglob("*.py")) if given.is_dir() else [given]:
            unfinished |= not _rewrite_file(path, options.dry_run)
    return int(unfinished)


def _rewrite_file(path: Path, dry_run: bool) -> bool:
    """Rewrite one file; False where something in it could not be changed."""
    try:
        content = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        rewritten = rewrite(content.decode(encoding))
    except (OSError, SyntaxError, ValueError) as error:
        print(f"{path}: {type(error).__name__}: {error}; left as it is", file=sys.stderr)
        return False
    path = path.resolve()  # a link stays one
    if rewritten.changes and not dry_run:
        with replacing(path) as temporary:
            temporary.write_bytes(rewritten.text.encode(encoding))
            temporary.chmod(path.stat().st_mode)
    if rewritten.changes or rewritten.problems:
        print(f"{path}: {rewritten.changes} import{'s' * (rewritten.changes != 1)} changed")
    for line, problem in rewritten.problems:
        print(f"{path}:{line}: {problem}", file=sys.stderr)
    return not rewritten.problems


if __name__ == "__main__":
    sys.exit(main())
