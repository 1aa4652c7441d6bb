"""The program, as `python -m archir` and `torchrun -m archir` start it."""

from archir.cli.main import main

if __name__ == "__main__":
    main()
