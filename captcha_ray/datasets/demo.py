"""Makes, on first use, the synthetic corpora and shards that jobs without arguments run on."""

from captcha_ray import corpus, storage, synth, synthesis
from captcha_ray.config import DEMO, PreprocessConfig, SynthesizeConfig

CORPORA = (
    SynthesizeConfig(scheme="digits", num_images=4000, out=f"{DEMO}/corpus/digits"),
    SynthesizeConfig(scheme="text5", num_images=5000, out=f"{DEMO}/corpus/text5"),
)
SHARDS = (
    PreprocessConfig(corpus=f"{DEMO}/corpus/digits", labels="folder", out=f"{DEMO}/shards/digits"),
    PreprocessConfig(
        corpus=f"{DEMO}/corpus/text5",
        labels="filename",
        label_pattern=synth.LABEL_PATTERN,
        height=50,
        width=200,
        out=f"{DEMO}/shards/text5",
    ),
)


def ensure_corpus(uri: str) -> None:
    """Draws the demo corpus at `uri`, if that is its place and nothing is there."""
    for config in CORPORA:
        if storage.absolute(config.out) == storage.absolute(uri) and storage.is_empty(config.out):
            synthesis.synthesize(config)


def ensure_shards(uri: str) -> None:
    """Makes the demo shards at `uri`, if that is their place and they are not there."""
    for config in SHARDS:
        unfinished = not storage.exists(storage.join(config.out, "_SUCCESS"))
        if storage.absolute(config.out) == storage.absolute(uri) and unfinished:
            ensure_corpus(config.corpus)
            corpus.preprocess(config)
