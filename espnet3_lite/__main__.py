"""``python -m espnet3_lite``, the form that torchrun starts: ``torchrun -m espnet3_lite train conf.yaml``."""

from espnet3_lite.cli.commands import main

if __name__ == "__main__":
    main()
