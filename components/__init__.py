"""One program per kind of stage: `python -m components.NAME` with a flag for each path."""

from unimed import environment

environment.settle()
