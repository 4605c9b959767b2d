"""C-SGD's arm: which leaves are clustered, and the merge of filters that have become equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.structured import csgd
from experiments.structured.setting import Stretch, multiply_adds, traced
from jaxsparse.paths import leaves_by_path, with_leaves
from tests.experiments.structured.tiny import BASE, INNER, OUTER, STEPS, make_setting, reached

pytestmark = pytest.mark.variants


@pytest.fixture(scope="module")
def setting():
    return make_setting(centripetal=100.0)


def test_all_groups_lose_the_same_share():
    widths = csgd.widths_of(make_setting(target=0.5))
    assert widths in ({INNER: 4, OUTER: 4}, {INNER: 4, OUTER: 5}, {INNER: 5, OUTER: 4})
    assert csgd.widths_of(make_setting(target=1.0)) == {INNER: 6, OUTER: 6}
    # The first lot of 3 leaves half of everything but the classifier, which loses half as well.
    assert csgd.widths_of(make_setting(target=0.5, round_to=3)) == {INNER: 6, OUTER: 3}


def test_epsilon_is_the_published_one_where_that_is_enough():
    assert csgd.centripetal_of(make_setting(steps=40_000, rate=0.03)) == 0.02
    assert csgd.centripetal_of(make_setting(steps=160_000, rate=0.03)) == 3e-3
    assert csgd.check(make_setting(steps=400))[0] == "csgd: epsilon 0.5"
    with pytest.raises(
        ValueError, match=r"--centripetal=0.003 is too small. csgd: in 8 steps diff"
    ):
        csgd.check(make_setting(centripetal=3e-3))
    with pytest.raises(ValueError, match=r"--centripetal=5 is too small"):
        csgd.check(make_setting())


def test_leaves_of_a_group_have_the_clusters_of_its_pacesetter(setting):
    base = reached(setting)
    clusters = csgd.clusters_of(setting, base)
    groups, _ = traced(setting.model, setting.image)
    assert {name: labels.max() + 1 for name, labels in clusters.items()} == csgd.widths_of(setting)
    assert set(csgd.labels_of(groups[OUTER], clusters[OUTER])) == {
        *("conv1/kernel", "norm1/scale", "norm1/bias", "stage1_block1/conv2/kernel"),
        *("stage1_block1/norm2/scale", "stage1_block1/norm2/bias"),
    }


def test_equal_filters_are_merged_without_a_change_of_outputs(setting):
    base = reached(setting)
    begun = csgd.begin(setting, base, Stretch(0.5, BASE + STEPS))
    clusters = csgd.clusters_of(setting, base)
    groups, _ = traced(setting.model, setting.image)
    leaves = dict(leaves_by_path(base.state.variables))
    for name, labels in clusters.items():
        first = np.unique(labels, return_index=True)[1][labels]
        for member in groups[name].members:
            if member.role != "input":
                leaves[member.path] = jnp.take(leaves[member.path], first, axis=member.axis)
    variables = with_leaves(base.state.variables, leaves)
    state = begun.state.replace(params=variables["params"])
    found = begun.narrow(base._replace(state=state))
    images = setting.base.normalise(jnp.asarray(setting.base.dataset.test.images))
    wide = jax.jit(setting.model.apply)(variables, images)
    narrow = jax.jit(found.model.apply)(found.variables, images)
    np.testing.assert_allclose(narrow, wide, atol=1e-5 * np.abs(wide).max())
    assert multiply_adds(found.model, setting.image) <= 0.5 * multiply_adds(
        setting.model, setting.image
    )
    assert found.is_merged and found.notes == {"centripetal": 100.0, "largest_difference": 0.0}
