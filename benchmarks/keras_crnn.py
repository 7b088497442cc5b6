"""Trains the CRNN of Keras' documentation, in an environment of its own, for our recognizers to be compared with.

The network and its training are those of "OCR model for reading Captchas" (A K Nain, 2020, Keras 3 version of 2024),
written anew: two convolutions, two bidirectional LSTMs over the columns, CTC, Adam at 1e-3, batch 16, images in [0, 1],
batches in the same order every epoch, no augmentation, decoding by the best class of each column, cut to the longest
text trained on. Otherwise than there:
- the images are in memory, where the example decodes its files anew every epoch;
- texts may differ in length;
- the decoder's blank is the trained one, the last class (a version of the example calls `keras.ops.ctc_decode`, whose
  default is the first);
- epochs are the caller's: none is stopped on the validation loss, nor are earlier weights put back.

    python keras_crnn.py --data FILE.npz --epochs N [--batch-size 16] [--seed S] [--threads T] [--every E] [--stop-at A]

FILE.npz holds train_images and test_images, uint8 (n, height, width), and train_texts and test_texts, unicode (n,).
Each evaluated epoch is a line of JSON on stdout: epoch, train_seconds (of all epochs so far: training alone, neither
evaluations nor compile_seconds), compile_seconds (making the training step: one batch, after which every weight, moment
and seed is put back), exact_match (share of the test texts read wholly right), loss (of a training image: Keras' figure
for the batches, which are summed, by --batch-size). The last line has versions and num_parameters. Needs TensorFlow and
Keras 3, and nothing of captcha_ray.
"""

import argparse
import json
import math
import os
import platform
import time
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras  # type: ignore[import-not-found]
import numpy as np
import numpy.typing as npt
import tensorflow as tf  # type: ignore[import-untyped]

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""Stands for class 0: the example's [UNK], never trained, so that 0 can fill up shorter texts."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="the .npz with images and texts")
    parser.add_argument("--epochs", type=int, required=True, help="epochs at most")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0: as many as it likes")
    parser.add_argument("--every", type=int, default=1, help="evaluate every so many epochs, and after the last")
    parser.add_argument("--stop-at", type=float, default=math.inf, help="end once exact_match is at least this")
    return parser.parse_args()


def build_model(height: int, width: int, num_characters: int) -> Any:
    """Classes: UNKNOWN, the characters, CTC's blank."""
    layers = keras.layers
    inputs = x = keras.Input((width, height, 1))  # time, CTC's first axis, is the width
    for filters in (32, 64):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Reshape((width // 4, height // 4 * 64))(x)
    x = layers.Dropout(0.2)(layers.Dense(64, activation="relu")(x))
    for units in (128, 64):
        x = layers.Bidirectional(layers.LSTM(units, return_sequences=True, dropout=0.25))(x)
    model = keras.Model(inputs, layers.Dense(num_characters + 2, activation="softmax")(x))
    model.compile(optimizer=keras.optimizers.Adam(), loss=ctc_cost, jit_compile=False)  # XLA has no CTC loss
    model.optimizer.build(model.trainable_variables)
    return model


def ctc_cost(labels: Any, probabilities: Any) -> Any:
    """Negative log likelihood of a batch's texts, summed as in the example, whose operation this is too."""
    scores = tf.math.log(tf.transpose(probabilities, (1, 0, 2)) + keras.config.epsilon())
    steps = tf.fill(tf.shape(scores)[1:2], tf.shape(scores)[0])
    labels = tf.sparse.from_dense(tf.cast(labels, tf.int32))
    return tf.reduce_sum(tf.compat.v1.nn.ctc_loss(labels=labels, inputs=scores, sequence_length=steps))


def encode(texts: list[str], charset: str) -> npt.NDArray[np.int32]:
    """A row of classes for each text, filled up with 0."""
    labels = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for row, text in zip(labels, texts, strict=True):
        row[: len(text)] = [1 + charset.index(character) for character in text]
    return labels


def decode(probabilities: npt.NDArray[np.float32], charset: str, longest: int) -> list[str]:
    best = probabilities.argmax(2)
    kept = best != probabilities.shape[2] - 1
    kept[:, 1:] &= best[:, 1:] != best[:, :-1]
    names = UNKNOWN + charset
    return ["".join(names[k] for k in row[keep][:longest]) for row, keep in zip(best, kept, strict=True)]


def batches(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32] | None, size: int) -> Any:
    columns = np.ascontiguousarray(images.transpose(0, 2, 1))[..., None]
    data = tf.data.Dataset.from_tensor_slices((columns,) if labels is None else (columns, labels)).batch(size)
    return data.map(lambda x, *y: (tf.image.convert_image_dtype(x, tf.float32), *y)).prefetch(tf.data.AUTOTUNE)


def compile_step(model: Any, data: Any) -> float:
    """Seconds the first batch took, of which nothing stays but the compiled step."""
    variables = [*model.variables, *model.optimizer.variables]
    before = [keras.ops.convert_to_numpy(variable) for variable in variables]
    started = time.perf_counter()
    model.fit(data.take(1), shuffle=False, verbose=0)
    seconds = time.perf_counter() - started
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return seconds


def main() -> None:
    options = parse()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    keras.utils.set_random_seed(options.seed)
    with np.load(options.data) as data:
        images, test_images = data["train_images"], data["test_images"]
        texts, test_texts = data["train_texts"].tolist(), data["test_texts"].tolist()
    charset = "".join(sorted(set("".join(texts))))
    labels = encode(texts, charset)
    train, test = batches(images, labels, options.batch_size), batches(test_images, None, 256)
    model = build_model(images.shape[1], images.shape[2], len(charset))
    compile_seconds, train_seconds = compile_step(model, train), 0.0
    for epoch in range(1, options.epochs + 1):
        started = time.perf_counter()
        loss = model.fit(train, shuffle=False, verbose=0).history["loss"][0] / options.batch_size
        train_seconds += time.perf_counter() - started
        if epoch % options.every and epoch < options.epochs:
            continue
        read = decode(model.predict(test, verbose=0), charset, labels.shape[1])
        exact_match = sum(map(str.__eq__, read, test_texts)) / len(test_texts)
        line = {"epoch": epoch, "train_seconds": round(train_seconds, 3), "compile_seconds": round(compile_seconds, 3)}
        print(json.dumps({**line, "exact_match": exact_match, "loss": loss}), flush=True)
        if exact_match >= options.stop_at:
            break
    versions = {module.__name__: module.__version__ for module in (tf, keras, np)}
    versions["python"] = platform.python_version()
    print(json.dumps({"versions": versions, "num_parameters": model.count_params()}), flush=True)


if __name__ == "__main__":
    main()
