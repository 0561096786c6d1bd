import numpy as np
import pytest

from index.classifier import Classifier
from index.heads import centred
from index.labels import LabelSnapshot
from index.suggest import Suggester, _spread


class Source:
    """A corpus in memory."""

    encoder_id, layer = "encoder-a", "backbone"

    def __init__(self, vectors):
        self.ids = np.arange(len(vectors), dtype=np.int64) * 2 + 1
        self.vectors = vectors

    def iter_batches(self, batch_rows=4096):
        step = min(batch_rows, 100)
        for start in range(0, len(self.ids), step):
            yield self.ids[start : start + step], self.vectors[start : start + step]


@pytest.fixture
def corpus(clustered):
    vectors, codes = clustered(600, 8, classes=6, noise=0.3)
    return Source(vectors), codes


def suggester_over(source, **options):
    return Suggester.over(source, source.vectors.mean(axis=0), **options)


def snapshot_of(ids, labels):
    order = np.argsort(ids)
    return LabelSnapshot(
        corpus_uid="uid",
        ids=np.array(ids, np.int64)[order],
        labels=tuple(labels[i] for i in order),
        audit=np.zeros(len(ids), dtype=bool),
    )


NOTHING = snapshot_of([], [])


def rows_of(source, suggestions):
    return np.searchsorted(source.ids, [s.picture_id for s in suggestions])


def test_the_first_suggestions_are_spread_over_the_clusters(corpus):
    source, codes = corpus
    suggestions = suggester_over(source).suggest(NOTHING, None, count=8)
    typical = [s for s in suggestions if s.reason == "typical"]
    assert len(typical) == 6
    assert len(set(codes[rows_of(source, typical)])) >= 5


def test_typical_pictures_lie_nearer_to_their_class_than_random_ones(corpus):
    source, codes = corpus
    features = centred(source.vectors, source.vectors.mean(axis=0))
    centres = np.stack([features[codes == code].mean(axis=0) for code in range(6)])
    distance = np.linalg.norm(features - centres[codes], axis=1)
    suggestions = suggester_over(source).suggest(NOTHING, None, count=16)
    rows = rows_of(source, [s for s in suggestions if s.reason == "typical"])
    assert distance[rows].mean() < 0.8 * distance.mean()


def test_every_fourth_question_of_all_is_a_random_audit(corpus):
    source, _ = corpus
    suggester = suggester_over(source)
    together = suggester.suggest(NOTHING, None, count=12)
    assert [s.source for s in together] == (["suggest"] * 3 + ["audit"]) * 3
    one_by_one = [suggester.suggest(NOTHING, None, num_asked=i)[0].source for i in range(12)]
    assert one_by_one == [s.source for s in together]


def test_audits_are_uniform_over_the_corpus(corpus):
    source, _ = corpus
    counts = np.zeros(4)
    for seed in range(40):
        suggestions = suggester_over(source, seed=seed).suggest(NOTHING, None, count=40)
        rows = rows_of(source, [s for s in suggestions if s.source == "audit"])
        counts += np.bincount(rows // 150, minlength=4)
    expected = counts.sum() / 4
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 16.3, "beyond the 99.9 % quantile with 3 degrees of freedom"


def without(source, rows):
    """The corpus after some pictures were removed."""
    rest = Source(np.delete(source.vectors, rows, axis=0))
    rest.ids = np.delete(source.ids, rows)
    return rest


def asked_as(source, kind):
    return [
        suggestion.picture_id
        for suggestion in suggester_over(source).suggest(NOTHING, None, count=len(source.ids))
        if suggestion.source == kind
    ]


def test_what_is_drawn_for_the_audit_stays_drawn_when_pictures_come_or_go(corpus):
    source, _ = corpus
    before = asked_as(source, "audit")
    for gone in ([0], [599], np.arange(0, 300, 2)):
        rest = without(source, gone)
        assert asked_as(rest, "audit") == [one for one in before if one in rest.ids]


def test_what_was_suggested_is_never_an_audit_of_another_version(corpus):
    source, _ = corpus
    small = without(source, np.arange(400))
    assert set(asked_as(small, "suggest")).isdisjoint(asked_as(source, "audit"))


def test_a_full_working_sample_changes_by_no_more_than_the_corpus(corpus):
    source, _ = corpus

    def sample(some):
        found = suggester_over(some, rows=60).suggest(NOTHING, None, count=600)
        return {suggestion.picture_id for suggestion in found}

    assert len(sample(source) - sample(without(source, [0, 1, 2]))) <= 3


def test_audit_pictures_are_never_also_suggested(corpus):
    source, _ = corpus
    suggester = suggester_over(source)
    everything = suggester.suggest(NOTHING, None, count=600)
    kinds = {"audit": set(), "suggest": set()}
    for suggestion in everything:
        kinds[suggestion.source].add(suggestion.picture_id)
    assert kinds["audit"].isdisjoint(kinds["suggest"])
    assert kinds["audit"] | kinds["suggest"] == set(source.ids.tolist())
    assert len(everything) == 600


def test_nothing_labelled_or_seen_is_asked_again_and_the_end_is_empty(corpus):
    source, _ = corpus
    suggester = suggester_over(source)
    labelled = snapshot_of(source.ids[:300], ["a", "b"] * 150)
    rest = suggester.suggest(labelled, None, count=1000, seen=source.ids[300:450])
    assert {s.picture_id for s in rest} == set(source.ids[450:].tolist())
    assert suggester.suggest(labelled, None, count=5, seen=source.ids) == []


def trained(source, ids, labels):
    snapshot = snapshot_of(ids, labels)
    rows = np.searchsorted(source.ids, snapshot.ids)
    mean = source.vectors.mean(axis=0)
    encoder = ("encoder-a", "backbone")
    return snapshot, Classifier.train(snapshot, source.vectors[rows], mean, encoder=encoder)


def test_with_three_labels_a_class_the_hesitant_pictures_are_asked(corpus):
    source, codes = corpus
    rows = np.concatenate([np.flatnonzero(codes == code)[:3] for code in range(6)])
    labels = [f"class {code}" for code in codes[rows]]
    snapshot, classifier = trained(source, source.ids[rows], labels)
    suggestions = suggester_over(source).suggest(snapshot, classifier, count=9)
    asked = [s for s in suggestions if s.source == "suggest"]
    assert {s.reason for s in asked} == {"uncertain"}
    best = -np.sort(-classifier.predict_proba(source.vectors), axis=1)
    margins = best[:, 0] - best[:, 1]
    assert margins[rows_of(source, asked)].mean() < np.quantile(margins, 0.25)
    snapshot, classifier = trained(source, source.ids[rows[:8]], labels[:8])
    early = suggester_over(source).suggest(snapshot, classifier, count=1)
    assert early[0].reason == "typical"


def test_suggestions_are_repeatable_and_depend_on_the_seed(corpus):
    source, _ = corpus
    a, b, c = (
        suggester_over(source, seed=seed).suggest(NOTHING, None, count=8) for seed in (1, 1, 2)
    )
    assert a == b
    assert a != c


def test_the_working_sample_is_bounded_and_uniform(corpus):
    source, _ = corpus
    counts = np.zeros(600)
    for seed in range(60):
        suggestions = suggester_over(source, rows=60, seed=seed).suggest(NOTHING, None, count=600)
        assert len(suggestions) == 60
        counts[rows_of(source, suggestions)] += 1
    halves = counts.reshape(6, 100).sum(axis=1)
    assert np.abs(halves - 600).max() < 5 * np.sqrt(600 * 5 / 6)


def test_one_picture_and_a_collapsed_corpus_work():
    for n in (1, 2, 30):
        suggester = suggester_over(Source(np.ones((n, 4), np.float32)))
        assert len({s.picture_id for s in suggester.suggest(NOTHING, None, count=50)}) == n


def test_spreading_takes_the_least_similar_next():
    points = np.array([[1, 0], [0.99, 0.14], [0, 1], [-1, 0]], np.float32)
    assert _spread(points, 3)[:2] == [0, 3]
    assert sorted(_spread(points, 9)) == [0, 1, 2, 3]
