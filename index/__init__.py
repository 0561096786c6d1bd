"""Vectors to answers: the embedding store, indexes, search, labels and few-label classifiers."""
