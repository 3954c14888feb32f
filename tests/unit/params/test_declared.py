"""A stage has the parameters that it declares and no others, and its records hold those."""

import pytest

from pag_core.params.declared import ALL, WHERE, UndeclaredParameter, declared_params, recorded_params

READS = (
    "dataset", "source", "lambda", "source_defaults.${source}", "seed", "method", "${method}", "diffusion_checkpoint",
    "objective.batch_norm", "objective.output", "feed.window_shards",
)  # fmt: skip


@pytest.fixture
def params(make_params):
    return make_params({"source": "cm", "method": "trades", "trades.beta": 2.5, "feed.window_shards": 3})


def test_what_is_declared_is_there(params):
    found = declared_params(params, READS, "some")
    assert (found.source, found.lambda_, found.seed, found.trades) == ("cm", params.lambda_, params.seed, params.trades)
    assert (found.objective.batch_norm, found.objective.output) == (params.objective.batch_norm, "logit")
    assert found.source_defaults.cm == params.source_defaults.cm and found.feed.window_shards == 3


@pytest.mark.parametrize(
    ("key", "read"),
    [
        ("train", lambda params: params.train),
        ("lambda", lambda params: params.lambda_),
        ("objective.scaling", lambda params: params.objective.scaling),
        ("at", lambda params: params.at.steps),
        ("source_defaults.sbg", lambda params: params.source_defaults.sbg),
        ("feed.window_shards", lambda params: hasattr(params.feed, "window_shards")),
    ],
)
def test_what_is_not_is_refused_with_the_remedy(params, key, read):
    reads = tuple({*READS} - {"lambda", "feed.window_shards"})
    with pytest.raises(UndeclaredParameter, match=rf"the stage some reads {key} without.*`reads`.* and to .*dvc\.yaml"):
        read(declared_params(params, reads, "some"))


@pytest.mark.parametrize("part", ["", "objective"])
def test_a_part_does_not_give_away_the_whole(params, part):
    found = declared_params(params, READS, "some")
    with pytest.raises(AttributeError, match="model_dump is no parameter"):
        (getattr(found, part) if part else found).model_dump()


def test_where_it_runs_is_always_there(params):
    found = declared_params(params, (), "some")
    for key in WHERE:
        given, read = params, found
        for part in key.split("."):
            given, read = getattr(given, part), getattr(read, part)
        assert read == given


def test_all_is_all(params):
    assert declared_params(params, ALL, "some") is params


def test_a_record_has_what_is_declared_with_auto_seed_and_places_elsewhere(params, plain_params):
    """The values that auto stands for, so that they are equal to the same ones given; data count by their content."""
    assert recorded_params(params, READS) == {
        "dataset": "digits", "source": "cm", "lambda": plain_params["source_defaults"]["cm"]["lambda"], "method": "trades",
        "trades": {**params.trades.model_dump(), "beta": 2.5}, "feed": {"window_shards": 3},
        "objective": {"batch_norm": params.objective.batch_norm, "output": "logit"},
    }  # fmt: skip
