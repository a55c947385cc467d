"""``python -m unmem``, the form that ``accelerate launch -m unmem`` needs."""

from unmem.cli import main

main()
