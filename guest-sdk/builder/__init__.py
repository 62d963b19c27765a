"""How guests are built. `guest-sdk/build.py` is the command."""
