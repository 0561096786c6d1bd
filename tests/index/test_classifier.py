import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from index.artifact import CorruptArtifactError, MissingArtifactError
from index.classifier import Classifier, accuracy_so_far
from index.folder import Folder
from index.heads import centred, fit_head, fit_logistic, fit_prototypes
from index.labels import LabelSnapshot
from index.same_encoder import EncoderMismatchError

ENCODER = ("encoder-a", "backbone")


def data(per_class, classes=3, dim=8, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    codes = np.tile(np.arange(classes), per_class)
    vectors = centres[codes] + noise * rng.normal(size=(len(codes), dim))
    return vectors.astype(np.float32), [f"class {code}" for code in codes]


def snapshot_of(labels, audit=None, first_id=0):
    n = len(labels)
    return LabelSnapshot(
        corpus_uid="uid",
        ids=np.arange(first_id, first_id + n, dtype=np.int64),
        labels=tuple(labels),
        audit=np.zeros(n, dtype=bool) if audit is None else audit,
    )


def train(per_class=5, classes=3, audit=None):
    vectors, labels = data(per_class, classes)
    mean = vectors.mean(axis=0)
    return Classifier.train(snapshot_of(labels, audit), vectors, mean, encoder=ENCODER)


def test_features_are_centred_and_of_unit_norm():
    vectors, _ = data(5)
    features = centred(vectors, vectors.mean(axis=0))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-6)
    shifted = centred(vectors + 7, vectors.mean(axis=0) + 7)
    np.testing.assert_allclose(features, shifted, atol=1e-5)
    assert not centred(np.ones((1, 4)), np.ones(4)).any()


def test_prototypes_choose_the_nearest_class_mean():
    vectors, labels = data(2)
    features = centred(vectors, vectors.mean(axis=0))
    head = fit_prototypes(features, labels)
    queries = centred(data(20, seed=1)[0], vectors.mean(axis=0))
    for query, logits in zip(queries, head.logits(queries), strict=True):
        distances = {
            name: np.linalg.norm(query - features[np.array(labels) == name].mean(axis=0))
            for name in head.classes
        }
        assert head.classes[logits.argmax()] == min(distances, key=distances.__getitem__)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_probabilities_equal_those_of_scikit_learn(classes):
    vectors, labels = data(6, classes)
    mean = vectors.mean(axis=0)
    classifier = Classifier.train(snapshot_of(labels), vectors, mean, encoder=ENCODER)
    queries, _ = data(10, classes, seed=1)
    reference = LogisticRegression(C=10, max_iter=2000).fit(centred(vectors, mean), labels)
    expected = reference.predict_proba(centred(queries, mean))
    np.testing.assert_allclose(classifier.predict_proba(queries), expected, atol=1e-4)
    assert classifier.classes == tuple(reference.classes_)


def test_the_head_follows_the_number_of_labels():
    vectors, labels = data(3)
    features = centred(vectors, vectors.mean(axis=0))
    assert fit_head(features, labels).kind == "logistic"
    assert fit_head(features[:-1], labels[:-1]).kind == "prototypes"
    assert fit_head(features[:3], labels[:3]).kind == "prototypes"


def test_one_class_is_not_enough():
    with pytest.raises(ValueError, match="needs two"):
        fit_head(np.eye(3, dtype=np.float32), ["a"] * 3)


def test_relabelling_the_classes_relabels_the_answers():
    vectors, labels = data(4)
    features = centred(vectors, vectors.mean(axis=0))
    renamed = [{"class 0": "z", "class 1": "y", "class 2": "x"}[label] for label in labels]
    a, b = fit_logistic(features, labels), fit_logistic(features, renamed)
    np.testing.assert_allclose(a.logits(features), b.logits(features)[:, ::-1], atol=1e-2)


def test_accuracy_comes_from_audit_pictures_alone():
    """Wrong suggested labels would change it; the same wrong labels as non-audit must not count."""
    vectors, labels = data(30, noise=0.1)
    features = centred(vectors, vectors.mean(axis=0))
    audit = np.arange(90) % 3 != 0
    so_far = accuracy_so_far(features, labels, audit)
    assert (so_far.num_audit, so_far.accuracy.value) == (60, 1.0)
    assert so_far.accuracy.low > 0.9
    assert accuracy_so_far(features, labels, np.zeros(90, dtype=bool)).accuracy is None


def test_accuracy_on_random_labels_is_chance_since_no_picture_sees_its_own_label():
    rng = np.random.default_rng(0)
    features = centred(rng.normal(size=(400, 32)), np.zeros(32))
    labels = [str(code) for code in rng.integers(0, 2, 400)]
    accuracy = accuracy_so_far(features, labels, np.ones(400, dtype=bool)).accuracy
    assert abs(accuracy.value - 0.5) < 0.1
    head = fit_logistic(features, labels)
    seen = np.array(head.classes)[head.logits(features).argmax(axis=1)] == np.array(labels)
    assert seen.mean() > 0.6, "in-sample accuracy, which must not be what is reported"


def test_the_interval_covers_the_accuracy_on_the_whole_corpus():
    covered = []
    for seed in range(20):
        vectors, labels = data(200, noise=1.2, seed=seed)
        mean = vectors.mean(axis=0)
        rows = np.random.default_rng(seed).choice(600, 100, replace=False)
        chosen = [labels[row] for row in rows]
        features = centred(vectors[rows], mean)
        stated = accuracy_so_far(features, chosen, np.ones(100, dtype=bool)).accuracy
        head = fit_head(features, chosen)
        predicted = np.array(head.classes)[head.logits(centred(vectors, mean)).argmax(axis=1)]
        rest = np.setdiff1d(np.arange(600), rows)
        truth = float((predicted == np.array(labels))[rest].mean())
        covered.append(stated.low <= truth <= stated.high)
    assert sum(covered) >= 17


def test_too_few_audit_labels_say_so():
    vectors, labels = data(5)
    audit = np.zeros(15, dtype=bool)
    audit[:4] = True
    so_far = accuracy_so_far(vectors, labels, audit)
    assert so_far.accuracy is None
    assert so_far.text == "4 random audit labels, too few to say. Label 16 more of them."


def test_a_published_classifier_comes_back_the_same(tmp_path):
    classifier = train(per_class=10, audit=np.ones(30, dtype=bool))
    door = classifier.publish(Folder.at(tmp_path / "c"))
    opened = Classifier.open(Folder.at(tmp_path / "c"))
    queries, _ = data(5, seed=1)
    np.testing.assert_array_equal(opened.predict_proba(queries), classifier.predict_proba(queries))
    assert opened.id == classifier.id == door["id"]
    assert opened.accuracy == classifier.accuracy
    assert (
        door["parents"]["label_snapshot_id"]
        == snapshot_of(data(10)[1], np.ones(30, bool)).snapshot_id
    )
    assert opened.parents == {
        "encoder_id": "encoder-a",
        "corpus_uid": "uid",
        "label_snapshot_id": door["parents"]["label_snapshot_id"],
    }


def test_publishing_again_replaces_the_head_and_leaves_no_old_one(tmp_path):
    folder = Folder.at(tmp_path)
    train(per_class=2).publish(folder)
    train(per_class=4).publish(folder)
    assert len(folder.names()) == 2
    assert Classifier.open(folder).head.kind == "logistic"


def test_killed_between_head_and_door_the_old_classifier_opens(tmp_path, monkeypatch):
    folder = Folder.at(tmp_path)
    old = train(per_class=2)
    old.publish(folder)

    def die(*args, **kwargs):
        raise OSError("killed")

    monkeypatch.setattr("index.classifier.publish", die)
    with pytest.raises(OSError, match="killed"):
        train(per_class=4).publish(folder)
    assert Classifier.open(folder).id == old.id


def test_damage_to_a_classifier_is_noticed(tmp_path):
    folder = Folder.at(tmp_path)
    with pytest.raises(MissingArtifactError):
        Classifier.open(folder)
    train().publish(folder)
    name = next(name for name in folder.names() if name.startswith("head-"))
    data_ = bytearray(folder.read_bytes(name))
    data_[-3] ^= 1
    folder.write_atomic(name, bytes(data_))
    with pytest.raises(CorruptArtifactError):
        Classifier.open(folder)
    with pytest.raises(CorruptArtifactError, match="not the one its card names"):
        Classifier.open(folder, verify="sizes")


def test_vectors_of_another_encoder_are_refused():
    classifier = train()
    classifier.require_encoder(*ENCODER)
    with pytest.raises(EncoderMismatchError, match="Train a classifier"):
        classifier.require_encoder("encoder-b", "backbone")
