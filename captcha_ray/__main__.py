"""`python -m captcha_ray VERB`: the console script by another name."""

from captcha_ray.cli import main

main()
