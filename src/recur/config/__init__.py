"""Composing and checking configs.

    compose        the config folder, the command line, `resume=RUN`, and building what a config names
    schema         a config against the classes that it names, before anything is built or written
    signatures     a value against the annotation of the argument that it is for
    settings       which settings may change when a run is resumed
    data_settings  the data settings of a run, changed by `key=value` words
    words          settings as words of a command line, and what a command that goes on says again
    translate      errors of Hydra, OmegaConf and YAML as mistakes of the user

To add an experiment: one file in `conf/experiment/` that overrides groups and keys; its head gives the command, the
figure to expect, the hardware and the time. To limit a setting: annotate the argument of the class that takes it
(`Annotated[int, Ge(1)]`, `Literal["head", "tail"]`); nothing else has to know.
"""
