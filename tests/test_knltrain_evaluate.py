"""Evaluation of a picture together with its mirror image."""

import numpy as np

from knltrain.comm import world
from knltrain.data import Augment, Synthetic
from knltrain.evaluate import evaluate
from knltrain.models import Model, build


class Mirrored(Synthetic):
    """The same pictures, seen in a mirror."""

    def image(self, row):
        return np.ascontiguousarray(super().image(row)[:, ::-1])


def test_evaluate__a_picture_and_its_mirror_image_count_alike_where_both_are_asked():
    layers, shape = build("resnet_cifar8", width=8, input_size=16)
    model = Model(layers, shape, 8)
    augment = Augment("none", 16, (127, 127, 127), (60, 60, 60))
    sets = [kind(203, 16, 10, pictures=203) for kind in (Synthetic, Mirrored)]
    plain = [evaluate(model, data, augment, world()) for data in sets]
    both = [evaluate(model, data, augment, world(), mirror=True) for data in sets]
    assert both[0] == both[1] and both[0].images == 203
    assert plain[0] != plain[1]  # or the test would see nothing
