"""``python -m espnet3_lite.compat.run train.py ARGUMENT...``: a program written for Lightning, run as it stands.

Nothing is rewritten: while the program runs, ``lightning``, ``pytorch_lightning`` and ``lightning_fabric`` are this
package, for the program and for all packages that it imports, whether Lightning is installed or not. What has no
counterpart here raises when it is imported, and says what to use instead. `install` does the same inside a program.
"""

import runpy
import sys
from pathlib import Path

from espnet3_lite.espnet.import_aliases import LIGHTNING, stand_in_for_good


def install() -> None:
    """From now on and in this process, importing Lightning's packages gives this one.

    Call it before anything imports them::

        import espnet3_lite.compat

        espnet3_lite.compat.install()
        import vocos  # imports pytorch_lightning

    Processes that the program starts by a command line of their own do not know of it.

    Raises:
        RuntimeError: Lightning was imported before; what holds its classes would go on with them.
    """
    if imported := [package for package in LIGHTNING if package in sys.modules]:
        found = getattr(sys.modules[imported[0]], "__file__", None)
        if found is None:
            return  # installed before
        raise RuntimeError(f"install() comes too late: {imported} is imported already, from {found}; call it first")
    stand_in_for_good(LIGHTNING)


def main(arguments: list[str] | None = None) -> int:
    """Run the program that the command line names; returns the exit status where the program sets none."""
    words = sys.argv[1:] if arguments is None else arguments
    as_module = words[:1] == ["-m"]
    program, *rest = words[as_module:] or [""]
    if not program or program.startswith("-"):
        print("usage: python -m espnet3_lite.compat.run PROGRAM.py ARGUMENT...", file=sys.stderr)
        print("       python -m espnet3_lite.compat.run -m PACKAGE.MODULE ARGUMENT...", file=sys.stderr)
        return 0 if program in ("-h", "--help") else 2
    install()
    sys.argv = [program, *rest]
    if as_module:
        sys.path.insert(0, "")
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(program).resolve().parent))
        runpy.run_path(program, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
