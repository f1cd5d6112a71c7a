"""From text to batches, for labelled texts and for running text.

What happens to a file, in this order:

    sources.py     which files make which split: a hub id, a folder, a zip, files by name
    hub.py         a data set of the hub
    repository.py  a folder laid out as on the hub       cards.py       what its README may ask for
    readers.py     one file or folder -> checked rows, each with its place for messages
    labels.py      label values -> classes
    text.py        text -> tokens: the tokenizers        corpus.py      running text -> one array of token ids
    own_tokenizers.py  tokenizers of other packages      tables.py      pandas frames and data sets as files
    cache.py       what is costly to make, kept          encoded.py     a split of labelled texts as it is kept
    vectors.py     word vectors for the embedding        pseudo_labels.py   texts that a model labelled
    training_texts.py  these and texts without labels, beside the labelled ones
    buckets.py     which texts make a batch              streams.py     which tokens make a window
    loader.py      the resumable loader of both          checks.py      limits on settings
    sentiment.py, language.py                            the LightningDataModules that do all of this
    families.py    what other packages may ask of either synthetic.py, memory.py   corpora that are generated

To add a source of data, write a class with the two methods of `recur.data.sources.Source`, `fingerprint` and `read`,
and return it from `find_splits` where it is recognised; `ZippedSplit`, there, is the shortest one. To add a generated
corpus, write a class with `split(name)` that gives such a source; a file in `conf/data` names it under `synthetic`.
Where the best possible metrics of labelled texts are known, the class has them as `ceiling`, by name, or the source has
its own. The source of a language model's text has `nats`: the loss on all of it, summed, of a model that knows how it
was made. Raise `recur.data.cache.VERSION` with every change of what is read or generated.
"""
