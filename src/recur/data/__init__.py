"""Text to tokens to batches, in the order of the pipeline.

    sources    which files and which splits: a hub id, a folder laid out like a repository, files, a folder a class
    readers    one file to checked rows
    synthetic  embedded corpora whose best possible score is known
    memory     long-range memory tasks whose best possible score is known
    text       tokenizers: text to ids and back
    corpus     running text to one array of ids a split
    cache      token arrays on disk, shared by all runs
    vectors    word vectors to start an embedding from
    loader     the resumable loader that both families share
    buckets    which texts make which batch, and the packing of a batch
    streams    a long text as parallel streams, cut into windows
    sentiment  labelled texts as a LightningDataModule
    language   running text as a LightningDataModule

To add a source: teach `sources` to find its files and splits, and `readers` to read one file of it into `Rows`. To add
a data set: one file in `conf/data/`.
"""
