"""Lets `python -m fastloss` stand in for the `fastloss` command."""

from fastloss.ner.cli import main

if __name__ == "__main__":
    main()
