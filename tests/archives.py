"""Small archives in the formats in which datasets are published, filled with images that the tests know."""

import dataclasses
import hashlib
import io
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

from pag_core.datasets import cifar, stl10, tiny_imagenet

WORDNET_IDS = ["n02124075", "n01443537", "n03393912", "n12267677"]
WORDS = ["Egyptian cat", "goldfish, Carassius auratus", "freight car", "acorn"]


def record(published, path):
    """`published` with the size and MD5 of the small archive `path` in place of the true one's."""
    content = path.read_bytes()
    return dataclasses.replace(published, size=len(content), md5=hashlib.md5(content).hexdigest())


def python2_pickle(value):
    """`value` as Python 2 pickled it (protocol 2), arrays as numpy of that time: what CIFAR's files hold."""

    def text(string):
        return b"T" + struct.pack("<I", len(string)) + string

    def written(part):
        match part:
            case str():
                return text(part.encode("latin1"))
            case int():
                return b"J" + struct.pack("<i", part)
            case list():
                return b"](" + b"".join(map(written, part)) + b"e"
            case dict():
                return b"}(" + b"".join(written(key) + written(entry) for key, entry in part.items()) + b"u"
            case np.ndarray():
                empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
                dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
                shape = b"".join(written(length) for length in part.shape) + b"\x86"
                return empty + b"(K\x01" + shape + dtype + b"\x89" + text(part.tobytes()) + b"tb"

    return b"\x80\x02" + written(value) + b"."


def tar_gz(path, files, extra=()):
    """A .tar.gz of `files` (content by name), with `extra` members (TarInfo) before them."""
    with tarfile.open(path, "w:gz") as archive:
        for member in extra:
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def random_images(classes, per_class, side, seed):
    """Images uint8 [N, 3, side, side] around the grey of their class, and labels int64 [N], in mixed order."""
    draws = np.random.default_rng(seed)
    labels = draws.permutation(np.repeat(np.arange(classes), per_class))
    greys = np.linspace(40, 210, classes)[labels, None, None, None]
    return np.clip(greys + draws.normal(0, 25, size=(len(labels), 3, side, side)), 0, 255).astype(np.uint8), labels


def small_cifar(folder, which, classes, per_class=(6, 4)):
    """The archive `which` with the first `classes` classes; returns its record and the images and labels of each split."""
    (train, train_labels), (test, test_labels) = splits = [
        random_images(classes, count, 32, seed) for seed, count in enumerate(per_class)
    ]
    names = [f"name {label}" for label in range(classes)]
    files = {which.meta: {which.names: names, "coarse_label_names": ["wrong"], "num_vis": 3072}}
    for name, rows in zip(which.train, np.array_split(np.arange(len(train)), len(which.train)), strict=True):
        files[name] = batch(which, train[rows], train_labels[rows])
    files[which.test] = batch(which, test, test_labels)
    path = tar_gz(folder / which.archive.name, {name: python2_pickle(content) for name, content in files.items()})
    return dataclasses.replace(which, archive=record(which.archive, path)), splits


def batch(which, images, labels):
    return {
        "batch_label": "a batch",
        which.labels: labels.tolist(),
        "coarse_labels": [0] * len(labels),
        "data": images.reshape(len(images), 3072),
        "filenames": ["a.png"] * len(labels),
    }


def small_stl10(folder, per_class=(6, 4), extra=()):
    """STL-10's archive with ten classes; each channel column by column, labels from 1, as its page describes."""
    splits = [random_images(10, count, 96, seed) for seed, count in enumerate(per_class)]
    files = {}
    for name, (images, labels) in zip(("test", "train"), reversed(splits), strict=True):
        columns = [np.stack([[channel.T for channel in image] for image in images])]
        files[f"stl10_binary/{name}_X.bin"] = np.concatenate(columns).tobytes()
        files[f"stl10_binary/{name}_y.bin"] = bytes((labels + 1).tolist())
    files["stl10_binary/unlabeled_X.bin"] = bytes(96 * 96 * 3)
    files["stl10_binary/class_names.txt"] = b"".join(b"class%d\n" % label for label in range(10))
    path = tar_gz(folder / stl10.ARCHIVE.name, files, extra)
    return record(stl10.ARCHIVE, path), splits


def jpeg(pixels):
    """JPEG of uint8 [3, H, W] or grey [H, W]."""
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=95)
    return file.getvalue()


def small_tiny_imagenet(folder, ids=WORDNET_IDS, words=WORDS, per_class=(6, 4), extra=None):
    """Tiny ImageNet's archive with the classes `ids`; the first training image of each class is grey.

    Returns its record, and for each split a list of (name of the file, its content, WordNet id).
    """
    root, splits = "tiny-imagenet-200", []
    (train, train_labels), (test, test_labels) = [
        random_images(len(ids), count, 64, seed) for seed, count in enumerate(per_class)
    ]
    counted, found = dict.fromkeys(ids, 0), []
    for pixels, label in zip(train, train_labels, strict=True):
        number = counted[ids[label]]
        counted[ids[label]] += 1
        name = f"{root}/train/{ids[label]}/images/{ids[label]}_{number}.JPEG"
        found.append((name, jpeg(pixels if number else pixels[0]), ids[label]))
    splits.append(found)
    names = [f"{root}/val/images/val_{number}.JPEG" for number in range(len(test))]
    splits.append([(name, jpeg(p), ids[label]) for name, p, label in zip(names, test, test_labels, strict=True)])
    path = folder / tiny_imagenet.ARCHIVE.name
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
        archive.writestr(f"{root}/wnids.txt", "".join(f"{wordnet_id}\n" for wordnet_id in ids))
        entries = [("n00001740", "entity"), *zip(ids, words, strict=True)]
        archive.writestr(f"{root}/words.txt", "".join(f"{wordnet_id}\t{word}\n" for wordnet_id, word in entries))
        archive.writestr(f"{root}/test/images/test_0.JPEG", jpeg(test[0]))
        lines = [f"{name.rsplit('/', 1)[1]}\t{wordnet_id}\t0\t32\t44\t62\n" for name, _, wordnet_id in splits[1]]
        archive.writestr(f"{root}/val/val_annotations.txt", "".join(lines))
        for wordnet_id in ids:
            archive.writestr(f"{root}/train/{wordnet_id}/{wordnet_id}_boxes.txt", "x.JPEG\t0\t0\t63\t63\n")
        for name, content, _ in splits[0] + splits[1]:
            archive.writestr(name, content)
    return record(tiny_imagenet.ARCHIVE, path), splits


CIFAR10, CIFAR100 = cifar.CIFAR10, cifar.CIFAR100
