"""`python -m lotterykit`: the command line."""

from lotterykit.cli import main

if __name__ == "__main__":
    main()
