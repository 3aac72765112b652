"""What is said of representations: seeds are the yardstick, at equal distance from the start."""

import itertools
import math

from sglm.analyze.representations.finding import RepresentationsFinding


def finding(kl: dict[frozenset[str], float], **models: tuple[str, int]) -> RepresentationsFinding:
    """Of runs with a label and a seed; KL by labels, the other distances alike."""
    pairs = []
    for one, other in itertools.combinations(models, 2):
        labels = frozenset({models[one][0], models[other][0]})
        layers = ("embedding", "cell 1", "hidden 1", "logits")
        pairs.append(
            {
                "runs": [one, other],
                "kl_nats": kl[labels] if models[one] != models[other] else 0.0,
                "agreement": 0.5,
                "cka": {layer: {layer: 0.9} for layer in layers},
                "rdm": dict.fromkeys(layers, 0.9),
            }
        )
    nothing = {"probes": {}, "top_direction": {"share": {}, "persistence": {}}}
    return RepresentationsFinding(
        positions=9,
        models={
            name: {"label": label, "seed": seed, "nats": 900.0 * seed, **nothing}
            for name, (label, seed) in models.items()
        },
        pairs=pairs,
        fields={},
    )


def of(*labels: str) -> frozenset[str]:
    return frozenset(labels)


def test_modes_are_compared_with_seeds_and_a_copy_is_no_seed() -> None:
    kl = {of("real"): 0.2, of("synthetic"): 0.2, of("real", "synthetic"): 0.6}
    runs = {
        "a": ("real", 0),
        "b": ("real", 1),
        "copy": ("real", 0),
        "c": ("synthetic", 0),
        "d": ("synthetic", 1),
    }
    said = finding(kl, **runs).summary()
    assert "runs of different modes or synthesizers (and seeds) are 3.00 times as far apart" in said
    alone = finding(kl, a=("real", 0), copy=("real", 0), c=("synthetic", 1)).summary()
    assert "give runs of two modes with two seeds each" in alone


def test_how_long_was_trained_is_no_difference_of_modes() -> None:
    labels = ("real @0", "real @1", "synthetic @0", "synthetic @1")
    kl = {of(label): 0.1 for label in labels}
    for one, other in itertools.combinations(labels, 2):
        kl[of(one, other)] = 0.2 if one[-1] == other[-1] else 7.0
    runs = {f"{label}{seed}": (label, seed) for label in labels for seed in (0, 1)}
    assert "modes or synthesizers (and seeds) are 2.00 times" in finding(kl, **runs).summary()


def test_other_configurations_of_a_mode_are_no_other_mode() -> None:
    kl = {of("real"): 0.1, of("real #2"): 0.1, of("real", "real #2"): 0.4}
    runs = {f"{label}{seed}": (label, seed) for label in ("real", "real #2") for seed in (0, 1)}
    assert "different configurations (and seeds) are 4.00 times" in finding(kl, **runs).summary()


def test_a_constant_field_predicts_something_but_has_no_rotation() -> None:
    fields = {
        "none": {"rotation": math.nan, "explained": 0.0, "implied_nats": [0.0, 0.0]},
        "constant": {"rotation": math.nan, "explained": 0.2, "implied_nats": [0.0, -0.5]},
        "linear": {"rotation": 0.5, "explained": 0.1, "implied_nats": [0.0, 0.3]},
    }
    labels = {name: {"label": name, "seed": 0} for name in fields}
    said = RepresentationsFinding(positions=9, models=labels, pairs=[], fields=fields).summary()
    assert said.endswith(
        "none: predicts nothing; constant: rotation undefined, 20% explained;"
        " linear: 50.0% rotation, 10% explained."
    )


def test_diverged_runs_have_numbers_that_are_not_finite() -> None:
    kl = {of("real"): math.nan, of("real", "synthetic"): math.nan, of("synthetic"): 0.0}
    found = finding(kl, a=("real", 0), b=("real", 1), c=("real", 2), d=("synthetic", 3))
    assert found.groups[0].means["ppl_ratio"] == math.inf
    assert math.isnan(found.groups[0].spread["kl_nats"])
    assert found._pair_rows()
