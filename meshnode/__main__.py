"""`python -m meshnode` is `meshnode`."""

from meshnode.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
