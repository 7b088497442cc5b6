"""Make, on first use, the synthetic corpora and shards that jobs without arguments run on."""

from captcha_ray.config import DEMO
from captcha_ray.datasets import preprocess
from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.storage import filesystem
from captcha_ray.synthesis import corpus, schemes
from captcha_ray.synthesis.config import SynthesizeConfig

CORPORA = (
    SynthesizeConfig(scheme="digits", num_images=4000, out=f"{DEMO}/corpus/digits"),
    SynthesizeConfig(scheme="text5", num_images=5000, out=f"{DEMO}/corpus/text5"),
)
SHARDS = (
    PreprocessConfig(corpus=f"{DEMO}/corpus/digits", labels="folder", out=f"{DEMO}/shards/digits"),
    PreprocessConfig(
        corpus=f"{DEMO}/corpus/text5",
        labels="filename",
        label_pattern=schemes.LABEL_PATTERN,
        height=50,
        width=200,
        out=f"{DEMO}/shards/text5",
    ),
)


def ensure_corpus(uri: str) -> None:
    """Draw the demo corpus at `uri` if that is its place and nothing else is there; finish one that was begun."""
    for config in CORPORA:
        if filesystem.absolute(config.out) != filesystem.absolute(uri):
            continue
        if filesystem.is_empty(config.out) or filesystem.exists(filesystem.join(config.out, corpus.STARTED)):
            corpus.synthesize(config)


def ensure_shards(uri: str) -> None:
    """Make the demo shards at `uri` if that is their place and they are not there."""
    for config in SHARDS:
        unfinished = not filesystem.exists(filesystem.join(config.out, "_SUCCESS"))
        if filesystem.absolute(config.out) == filesystem.absolute(uri) and unfinished:
            ensure_corpus(config.corpus)
            preprocess.preprocess(config)
