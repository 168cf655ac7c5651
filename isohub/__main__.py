"""`python -m isohub`: the command line."""

from isohub.cli.main import main

if __name__ == "__main__":
    main()
