"""`python -m rerankd.launch_server`: the server with SGLang's flags and API."""

from rerankd.cli.main import main_launch_server

if __name__ == "__main__":
    main_launch_server()
