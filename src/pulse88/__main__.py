"""`python -m pulse88` is `pulse88`."""

from pulse88.cli import main

if __name__ == "__main__":
    main(prog_name="pulse88")
