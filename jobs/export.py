"""Write a network's ONNX models anew: `python jobs/export.py --run URI`."""

from captcha_ray import cli

if __name__ == "__main__":
    cli.run("export")
