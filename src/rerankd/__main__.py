"""`python -m rerankd`: the command `rerankd`."""

from rerankd.cli.main import main

if __name__ == "__main__":
    main()
