"""`python -m engine` in a checkout, `python -m modalscape.engine` anywhere: the command line."""

from modalscape.engine.cli import begin

if __name__ == "__main__":
    begin()
