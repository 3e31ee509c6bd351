"""``python -m exafield`` is ``exafield``: the form that works under every launcher."""

from exafield.cli import program

if __name__ == "__main__":
    program()
